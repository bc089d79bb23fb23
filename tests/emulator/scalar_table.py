"""Scalar instructions that compute: kinds of result and operands (as in vector_table), the function, and what SCC gets.

SCC is nothing (None), whether the result is not zero ("nz"), or a function of the operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import arithmetic
from .arithmetic import F32, I32, I64, U32, U64, Array


def constant16(token: str, typ: str) -> int:
    """The 16-bit constant of S_CMPK_*: sign extended for signed comparisons."""
    value = int(token, 0) & 0xFFFF
    return value - 0x10000 if typ == "i32" and value >= 0x8000 else value


def _bits(width: int) -> Callable[..., Array]:
    t = U64 if width == 64 else U32

    def f(a: Array, b: Array) -> Array:
        off, wid = (b & U32(width - 1)).astype(U64), ((b >> U32(16)) & U32(127)).astype(U64)
        mask = np.where(wid >= 64, U64(0xFFFFFFFFFFFFFFFF), (U64(1) << np.minimum(wid, U64(63))) - U64(1))
        return ((a.astype(U64) >> off) & mask).astype(t)

    return f


def _signed_bits(a: Array, b: Array) -> Array:
    off, wid = (b & U32(31)).astype(I64), ((b >> U32(16)) & U32(127)).astype(I64)
    x = (a.astype(I64) >> off) & ((I64(1) << np.minimum(wid, 62)) - 1)
    sign = np.where(wid > 0, (x >> np.maximum(wid - 1, 0)) & 1, 0)
    return (x - (sign << np.minimum(wid, 62))).astype(I32)


def _overflow(a: Array, b: Array, sign: int = 1) -> Array:
    r = a.astype(I64) + sign * b.astype(I64)
    return (r > 2**31 - 1) | (r < -(2**31))


def _wrapped(x: Array) -> Array:
    return (x & 0xFFFFFFFF).astype(U32)


def _half(a: Array) -> Array:
    return (a & U32(0xFFFF)).astype(np.uint16).view(np.float16)


def _stored(a: Array) -> Array:
    return a.view(np.uint16).astype(U32)


SALU: dict[str, tuple[str, str, Callable[..., Any], Any]] = {
    "s_mov_b32": ("u", "u", lambda a: a, None),
    "s_mov_b64": ("U", "U", lambda a: a, None),
    "s_not_b32": ("u", "u", lambda a: ~a, "nz"),
    "s_not_b64": ("U", "U", lambda a: ~a, "nz"),
    "s_abs_i32": ("i", "i", np.abs, "nz"),
    "s_brev_b32": ("u", "u", arithmetic.reversed_bits, None),
    "s_bcnt1_i32_b32": ("u", "u", arithmetic.popcount, "nz"),
    "s_bcnt1_i32_b64": ("u", "U", arithmetic.popcount, "nz"),
    "s_ff1_i32_b32": ("u", "u", lambda a: arithmetic.first_bit(a, 32, True), None),
    "s_ff1_i32_b64": ("u", "U", lambda a: arithmetic.first_bit(a, 64, True), None),
    "s_ctz_i32_b32": ("u", "u", lambda a: arithmetic.first_bit(a, 32, True), None),
    "s_flbit_i32_b32": ("u", "u", lambda a: arithmetic.first_bit(a, 32, False), None),
    "s_clz_i32_u32": ("u", "u", lambda a: arithmetic.first_bit(a, 32, False), None),
    "s_sext_i32_i16": ("i", "i", lambda a: (a << 16) >> 16, None),
    "s_sext_i32_i8": ("i", "i", lambda a: (a << 24) >> 24, None),
    "s_and_b32": ("u", "uu", lambda a, b: a & b, "nz"),
    "s_and_b64": ("U", "UU", lambda a, b: a & b, "nz"),
    "s_or_b32": ("u", "uu", lambda a, b: a | b, "nz"),
    "s_or_b64": ("U", "UU", lambda a, b: a | b, "nz"),
    "s_xor_b32": ("u", "uu", lambda a, b: a ^ b, "nz"),
    "s_xor_b64": ("U", "UU", lambda a, b: a ^ b, "nz"),
    "s_andn2_b32": ("u", "uu", lambda a, b: a & ~b, "nz"),
    "s_andn2_b64": ("U", "UU", lambda a, b: a & ~b, "nz"),
    "s_and_not1_b32": ("u", "uu", lambda a, b: a & ~b, "nz"),
    "s_and_not1_b64": ("U", "UU", lambda a, b: a & ~b, "nz"),
    "s_orn2_b64": ("U", "UU", lambda a, b: a | ~b, "nz"),
    "s_orn2_b32": ("u", "uu", lambda a, b: a | ~b, "nz"),
    "s_or_not1_b32": ("u", "uu", lambda a, b: a | ~b, "nz"),
    "s_nor_b64": ("U", "UU", lambda a, b: ~(a | b), "nz"),
    "s_nor_b32": ("u", "uu", lambda a, b: ~(a | b), "nz"),
    "s_nand_b32": ("u", "uu", lambda a, b: ~(a & b), "nz"),
    "s_bfm_b64": (
        "U",
        "uu",
        lambda a, b: ((U64(1) << (a & U32(63)).astype(U64)) - U64(1)) << (b & U32(63)).astype(U64),
        None,
    ),
    "s_nand_b64": ("U", "UU", lambda a, b: ~(a & b), "nz"),
    "s_xnor_b64": ("U", "UU", lambda a, b: ~(a ^ b), "nz"),
    "s_lshl_b32": ("u", "uu", lambda a, b: a << (b & U32(31)), "nz"),
    "s_lshr_b32": ("u", "uu", lambda a, b: a >> (b & U32(31)), "nz"),
    "s_ashr_i32": ("i", "iu", lambda a, b: a >> (b & U32(31)).astype(I32), "nz"),
    "s_lshl_b64": ("U", "Uu", lambda a, b: a << (b & U32(63)).astype(U64), "nz"),
    "s_lshr_b64": ("U", "Uu", lambda a, b: a >> (b & U32(63)).astype(U64), "nz"),
    "s_ashr_i64": ("I", "Iu", lambda a, b: a >> (b & U32(63)).astype(I64), "nz"),
    "s_bfm_b32": ("u", "uu", lambda a, b: ((U32(1) << (a & U32(31))) - U32(1)) << (b & U32(31)), None),
    "s_bfe_u32": ("u", "uu", _bits(32), "nz"),
    "s_bfe_u64": ("U", "Uu", _bits(64), "nz"),
    "s_bfe_i32": ("i", "iu", _signed_bits, "nz"),
    "s_mul_i32": ("u", "uu", lambda a, b: a * b, None),
    "s_mul_hi_u32": ("u", "uu", lambda a, b: ((a.astype(U64) * b.astype(U64)) >> U64(32)).astype(U32), None),
    "s_mul_hi_i32": ("i", "ii", lambda a, b: ((a.astype(I64) * b.astype(I64)) >> 32).astype(I32), None),
    "s_mul_u64": ("U", "UU", lambda a, b: a * b, None),
    "s_add_u64": ("U", "UU", lambda a, b: a + b, None),
    "s_add_nc_u64": ("U", "UU", lambda a, b: a + b, None),
    "s_sub_u64": ("U", "UU", lambda a, b: a - b, None),
    "s_sub_nc_u64": ("U", "UU", lambda a, b: a - b, None),
    "s_add_u32": ("u", "uu", lambda a, b: a + b, lambda a, b: a.astype(U64) + b.astype(U64) > U64(0xFFFFFFFF)),
    "s_add_co_u32": ("u", "uu", lambda a, b: a + b, lambda a, b: a.astype(U64) + b.astype(U64) > U64(0xFFFFFFFF)),
    "s_sub_u32": ("u", "uu", lambda a, b: a - b, lambda a, b: b > a),
    "s_sub_co_u32": ("u", "uu", lambda a, b: a - b, lambda a, b: b > a),
    "s_add_i32": ("u", "ii", lambda a, b: _wrapped(a.astype(I64) + b), _overflow),
    "s_add_co_i32": ("u", "ii", lambda a, b: _wrapped(a.astype(I64) + b), _overflow),
    "s_sub_i32": ("u", "ii", lambda a, b: _wrapped(a.astype(I64) - b), lambda a, b: _overflow(a, b, -1)),
    "s_sub_co_i32": ("u", "ii", lambda a, b: _wrapped(a.astype(I64) - b), lambda a, b: _overflow(a, b, -1)),
    "s_min_i32": ("i", "ii", np.minimum, lambda a, b: a <= b),
    "s_max_i32": ("i", "ii", np.maximum, lambda a, b: a >= b),
    "s_min_u32": ("u", "uu", np.minimum, lambda a, b: a <= b),
    "s_max_u32": ("u", "uu", np.maximum, lambda a, b: a >= b),
    "s_pack_ll_b32_b16": ("u", "uu", lambda a, b: (a & U32(0xFFFF)) | (b << U32(16)), None),
    "s_pack_lh_b32_b16": ("u", "uu", lambda a, b: (a & U32(0xFFFF)) | (b & U32(0xFFFF0000)), None),
    "s_pack_hh_b32_b16": ("u", "uu", lambda a, b: (a >> U32(16)) | (b & U32(0xFFFF0000)), None),
    "s_pack_hl_b32_b16": ("u", "uu", lambda a, b: (a >> U32(16)) | (b << U32(16)), None),
    "s_lshl1_add_u32": ("u", "uu", lambda a, b: (a << U32(1)) + b, None),
    "s_lshl2_add_u32": ("u", "uu", lambda a, b: (a << U32(2)) + b, None),
    "s_lshl3_add_u32": ("u", "uu", lambda a, b: (a << U32(3)) + b, None),
    "s_lshl4_add_u32": ("u", "uu", lambda a, b: (a << U32(4)) + b, None),
    # GFX11.5 / GFX12 scalar floats
    "s_mul_f32": ("f", "ff", lambda a, b: a * b, None),
    "s_add_f32": ("f", "ff", lambda a, b: a + b, None),
    "s_sub_f32": ("f", "ff", lambda a, b: a - b, None),
    "s_fmac_f32": ("f", "ffD", arithmetic.fma, None),
    "s_fmamk_f32": ("f", "fff", arithmetic.fma, None),
    "s_fmaak_f32": ("f", "fff", arithmetic.fma, None),
    "s_max_num_f32": ("f", "ff", arithmetic.maxnum, None),
    "s_min_num_f32": ("f", "ff", arithmetic.minnum, None),
    "s_cvt_f32_u32": ("f", "u", lambda a: a.astype(F32), None),
    "s_cvt_f32_i32": ("f", "i", lambda a: a.astype(F32), None),
    "s_cvt_u32_f32": ("u", "f", lambda a: arithmetic.to_int(a, 0, 0xFFFFFFFF, U32), None),
    "s_cvt_i32_f32": ("i", "f", lambda a: arithmetic.to_int(a, -(2**31), 2**31 - 1, I32), None),
    "s_cvt_f32_f16": ("f", "u", lambda a: _half(a).astype(F32), None),
    "s_cvt_hi_f32_f16": ("f", "u", lambda a: _half(a >> U32(16)).astype(F32), None),
    "s_cvt_f16_f32": ("u", "f", lambda a: _stored(a.astype(np.float16)), None),
    "s_add_f16": ("u", "uu", lambda a, b: _stored(_half(a) + _half(b)), None),
    "s_sub_f16": ("u", "uu", lambda a, b: _stored(_half(a) - _half(b)), None),
    "s_mul_f16": ("u", "uu", lambda a, b: _stored(_half(a) * _half(b)), None),
    "s_trunc_f32": ("f", "f", np.trunc, None),
    "s_floor_f32": ("f", "f", np.floor, None),
}
