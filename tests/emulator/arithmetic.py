"""What the instructions compute, as functions of numpy arrays: fp32 and fp16 with one rounding, integers that wrap.

Sources: AMD's ISA documents "CDNA3", "RDNA3" and "RDNA4" (the chapters on vector ALU instructions), and where these are
silent (V_DIV_SCALE, V_DIV_FMAS) what the sequence that the compiler emits needs in order to divide rightly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

U32, I32, F32, U64, I64, F64 = np.uint32, np.int32, np.float32, np.uint64, np.int64, np.float64
Array = Any


class Unknown(Exception):
    """An instruction or operand that this emulator does not know."""


def pack(mask: Array) -> Array:
    """bool [n, lanes] to uint64 [n]."""
    bits = np.packbits(mask, axis=1, bitorder="little")
    if bits.shape[1] == 4:
        return np.ascontiguousarray(bits).view(U32)[:, 0].astype(U64)
    return np.ascontiguousarray(bits).view(U64)[:, 0]


def unpack_mask(words: Array, lanes: int) -> Array:
    """uint64 [n] to bool [n, lanes]."""
    return ((words[:, None] >> np.arange(lanes, dtype=U64)) & U64(1)).astype(bool)


def fused(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of fp32 or fp16 in fp64, rounded to odd: rounding this once more gives what one rounding gives."""
    product, c = a.astype(F64) * b.astype(F64), np.asarray(c).astype(F64)
    total = np.asarray(product + c)
    part = total - product
    rest = (product - (total - part)) + (c - part)
    odd = (total.view(I64) & 1).astype(bool)
    inexact = (rest != 0) & ~odd & np.isfinite(total)
    return np.where(inexact, np.nextafter(total, np.where(rest > 0, np.inf, -np.inf)), total)


def fma(a: Array, b: Array, c: Array) -> Array:
    """fp32 a * b + c, rounded once."""
    return fused(a, b, c).astype(F32)


def fma_fp16(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once to fp16."""
    return fused(a, b, c).astype(np.float16)


def flushed(x: Array) -> Array:
    """Denormal fp32 to zero of the same sign: what the approximating instructions do."""
    return np.where(np.abs(x) < F32(1.17549435e-38), np.copysign(F32(0), x), x).astype(F32)


def to_int(x: Array, low: int, high: int, kind: Any) -> Array:
    """Float to integer: towards zero, held at the ends, NaN to 0."""
    y = np.nan_to_num(np.trunc(x.astype(F64)), nan=0.0, posinf=high, neginf=low)
    return np.clip(y, low, high).astype(I64).astype(kind)


def nearest_bf16(x: Array) -> Array:
    """fp32 to bf16 bits, nearest even (hardware conversion of gfx950)."""
    bits = np.asarray(x, F32).view(U32)
    out = (bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16)
    return np.where(np.isnan(x), (bits >> U32(16)) | U32(0x40), out).astype(U32)


def halves(x: Array, high: bool) -> Array:
    """The upper or lower 16 bits of 32."""
    return ((x >> U32(16)) if high else (x & U32(0xFFFF))).astype(np.uint16)


def shift5(a: Array) -> Array:
    """A shift of 32-bit values counts modulo 32."""
    return a & U32(31)


def bits_of(a: Array, b: Array, c: Array) -> Array:
    """V_BFE_U32: c bits of a from bit b on."""
    off, wid = b & U32(31), c & U32(31)
    return (a >> off) & ((U32(1) << wid) - U32(1))


def signed_bits_of(a: Array, b: Array, c: Array) -> Array:
    """V_BFE_I32: the same, sign extended."""
    off, wid = b.astype(I64) & 31, c.astype(I64) & 31
    x = (a.astype(I64) >> off) & ((I64(1) << wid) - 1)
    sign = np.where(wid > 0, (x >> np.maximum(wid - 1, 0)) & 1, 0)
    return (x - (sign << wid)).astype(I32)


def permuted_bytes(a: Array, b: Array, s: Array) -> Array:
    """V_PERM_B32: four bytes out of eight, signs, 0x00 and 0xFF."""
    both = (a.astype(U64) << U64(32)) | b.astype(U64)
    out = np.zeros(np.broadcast_shapes(both.shape, s.shape), U32)
    for i in range(4):
        sel = ((s >> U32(8 * i)) & U32(255)).astype(U64)
        byte = (both >> (np.minimum(sel, U64(7)) * U64(8))) & U64(255)
        sign = (both >> ((sel - U64(8)) % U64(4) * U64(16) + U64(15))) & U64(1)
        byte = np.where(sel < 8, byte, np.where(sel < 12, sign * U64(255), np.where(sel == 12, 0, 255)))
        out |= byte.astype(U32) << U32(8 * i)
    return out


def classify(x: Array, mask: Array) -> Array:
    """V_CMP_CLASS_F32: one bit of ``mask`` for each of ten kinds of number."""
    bits = x.view(U32)
    sign, exp, man = (bits >> U32(31)).astype(bool), (bits >> U32(23)) & U32(255), bits & U32(0x7FFFFF)
    quiet = (man >> U32(22)).astype(bool)
    kinds = [
        (exp == 255) & (man != 0) & ~quiet,
        (exp == 255) & quiet & (man != 0),
        (exp == 255) & (man == 0) & sign,
        (exp > 0) & (exp < 255) & sign,
        (exp == 0) & (man != 0) & sign,
        (exp == 0) & (man == 0) & sign,
        (exp == 0) & (man == 0) & ~sign,
        (exp == 0) & (man != 0) & ~sign,
        (exp > 0) & (exp < 255) & ~sign,
        (exp == 255) & (man == 0) & ~sign,
    ]
    out = np.zeros(np.broadcast_shapes(x.shape, mask.shape), bool)
    for bit, kind in enumerate(kinds):
        out |= kind & ((mask >> U32(bit)) & U32(1)).astype(bool)
    return out


def med3(a: Array, b: Array, c: Array) -> Array:
    """The middle of three."""
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))


def minnum(a: Array, b: Array) -> Array:
    """IEEE minNum: a number where one is NaN; -0 below +0."""
    r = np.fmin(a, b)
    return np.where((a == 0) & (b == 0) & (np.signbit(a) | np.signbit(b)), np.copysign(r, -1), r)


def maxnum(a: Array, b: Array) -> Array:
    """IEEE maxNum: a number where one is NaN; +0 above -0."""
    r = np.fmax(a, b)
    return np.where((a == 0) & (b == 0) & (~np.signbit(a) | ~np.signbit(b)), np.abs(r), r)


def min3(a: Array, b: Array, c: Array) -> Array:
    """The least number of three."""
    return minnum(minnum(a, b), c)


def max3(a: Array, b: Array, c: Array) -> Array:
    """The greatest number of three."""
    return maxnum(maxnum(a, b), c)


def ldexp(a: Array, b: Array) -> Array:
    """a * 2**b, rounded once."""
    return np.ldexp(a.astype(F64), np.clip(b, -400, 400)).astype(F32)


def mul_high(a: Array, b: Array) -> Array:
    """The upper 32 bits of an unsigned product."""
    return ((a.astype(U64) * b.astype(U64)) >> U64(32)).astype(U32)


def mul_high_signed(a: Array, b: Array) -> Array:
    """The upper 32 bits of a signed product."""
    return ((a.astype(I64) * b.astype(I64)) >> I64(32)).astype(I32)


def popcount(x: Array) -> Array:
    """How many bits are set."""
    x = x.astype(U64)
    n = np.zeros(x.shape, U32)
    for i in range(64):
        n += ((x >> U64(i)) & U64(1)).astype(U32)
    return n


def first_bit(x: Array, width: int, low: bool) -> Array:
    """Index of the first set bit from the low or the high end; -1 if none."""
    x = x.astype(U64)
    out = np.full(x.shape, 0xFFFFFFFF, U32)
    order = range(width - 1, -1, -1) if low else range(width)
    for i in order:
        out = np.where((x >> U64(i)) & U64(1), U32(i if low else width - 1 - i), out)
    return out


def fract(a: Array) -> Array:
    """The fraction, always below 1."""
    return np.minimum(a - np.floor(a), F32(0.99999994))


def div_fixup(q: Array, den: Array, num: Array) -> Array:
    """V_DIV_FIXUP_F32: special quotients of ``num`` / ``den``, else ``q`` with the right sign."""
    sign = np.signbit(den) ^ np.signbit(num)
    out = np.where(sign, -np.abs(q), np.abs(q))
    out = np.where(np.isnan(q), np.where(sign, F32(-np.inf), F32(np.inf)), out)
    zero, inf = np.where(sign, F32(-0.0), F32(0)), np.where(sign, F32(-np.inf), F32(np.inf))
    out = np.where((den == 0) | np.isinf(num), inf, out)
    out = np.where(np.isinf(den) | (num == 0), zero, out)
    out = np.where(((den == 0) & (num == 0)) | (np.isinf(den) & np.isinf(num)), F32(np.nan), out)
    return np.where(np.isnan(den), den, np.where(np.isnan(num), num, out)).astype(F32)


def reversed_bits(a: Array) -> Array:
    """V_BFREV_B32."""
    out = np.zeros(a.shape, U32)
    for i in range(32):
        out |= ((a >> U32(i)) & U32(1)) << U32(31 - i)
    return out


def truncated_fp16(x: Array) -> Array:
    """fp32 to the bits of fp16, towards zero."""
    y = x.astype(np.float16)
    too = np.abs(y.astype(F64)) > np.abs(x.astype(F64))
    bits = y.view(np.uint16)
    return np.where(too & ~np.isnan(x), bits - np.uint16(1), bits).astype(U32)


def neighbour(exact: Array, nearest: Array, random: np.random.Generator) -> Array:
    """One of the two fp32 values around an fp64 value, at random: hardware is within 1 ulp, not always nearest."""
    back = nearest.astype(F64)
    other = np.where(back < exact, np.nextafter(nearest, F32(np.inf)), np.nextafter(nearest, F32(-np.inf)))
    use = (back != exact) & np.isfinite(nearest) & (random.random(nearest.shape) < 0.5)
    return np.where(use, other, nearest).astype(F32)
