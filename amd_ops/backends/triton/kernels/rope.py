"""Rotary embedding of q and k in one launch (rotate-half), optionally after a norm of every head, optionally with k and
v written into a static cache. The backward is the same kernel with the rotation turned round.

A program takes BLOCK_H heads of one token; the first programs of a token take q's heads, the next k's, the last v's.
Outputs are dense [B, S, H, D].
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import narrow, rounded


@triton.jit
def _normed(value, scale, weight, FORM: tl.constexpr, TYPE: tl.constexpr):
    """One part of a head after its norm, rounded to TYPE as the stock norm module returns it."""
    if FORM == "llama":
        return rounded(rounded(value * scale, TYPE) * weight, TYPE)
    elif FORM == "gemma":
        return rounded(value * scale * (1.0 + weight), TYPE)
    else:
        return rounded(value * scale * weight, TYPE)


@triton.jit
def _heads(
    x, x_at, x_sh, out, o_at, o_sh, cos, c_at, sin, s_at, w, eps, first, count,
    D: tl.constexpr, HALF: tl.constexpr, FORM: tl.constexpr, BACKWARD: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Turn heads first .. first + BLOCK_H - 1 of one token: (a, b) = the halves of the rotated part, c = the rest."""
    X: tl.constexpr = x.dtype.element_ty
    OUT: tl.constexpr = out.dtype.element_ty
    head = first + tl.arange(0, BLOCK_H)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    inside = col < HALF
    mask = (head < count) & inside
    x_at += head * x_sh
    o_at += head * o_sh
    a = tl.load(x + x_at + col, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + x_at + HALF + col, mask=mask, other=0.0).to(tl.float32)
    if FORM != "":
        square = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)
        if 2 * HALF < D:
            tail = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
            c = tl.load(x + x_at + tail, mask=(head < count) & (tail < D), other=0.0).to(tl.float32)
            square += tl.sum(c * c, axis=1)
        scale = tl.rsqrt(square[:, None] / D + eps)
        a = _normed(a, scale, tl.load(w + col, mask=inside, other=0.0).to(tl.float32), FORM, X)
        b = _normed(b, scale, tl.load(w + HALF + col, mask=inside, other=0.0).to(tl.float32), FORM, X)
    cos_a = tl.load(cos + c_at + col, mask=inside, other=0.0).to(tl.float32)
    cos_b = tl.load(cos + c_at + HALF + col, mask=inside, other=0.0).to(tl.float32)
    sin_a = tl.load(sin + s_at + col, mask=inside, other=0.0).to(tl.float32)
    sin_b = tl.load(sin + s_at + HALF + col, mask=inside, other=0.0).to(tl.float32)
    if BACKWARD:
        left = rounded(a * cos_a, OUT) + rounded(b * sin_b, OUT)
        right = rounded(b * cos_b, OUT) - rounded(a * sin_a, OUT)
    else:
        left = rounded(a * cos_a, OUT) - rounded(b * sin_a, OUT)
        right = rounded(b * cos_b, OUT) + rounded(a * sin_b, OUT)
    tl.store(out + o_at + col, narrow(left, OUT), mask=mask)
    tl.store(out + o_at + HALF + col, narrow(right, OUT), mask=mask)
    if 2 * HALF < D:
        tail = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
        held = (head < count) & (tail < D)
        c = tl.load(x + x_at + tail, mask=held, other=0.0).to(tl.float32)
        if FORM != "":
            c = _normed(c, scale, tl.load(w + tail, mask=tail < D, other=0.0).to(tl.float32), FORM, X)
        tl.store(out + o_at + tail, narrow(c, OUT), mask=held)


@triton.jit
def _copy_heads(x, x_at, x_sh, out, o_at, o_sh, first, count, keep, D: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    head = first + tl.arange(0, BLOCK_H)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (head < count) & (col < D) & keep
    tl.store(out + o_at + head * o_sh + col, tl.load(x + x_at + head * x_sh + col, mask=mask, other=0.0), mask=mask)


_SIZES = ["length", "q_heads", "k_heads", "slots"]


@triton.jit(do_not_specialize=_SIZES)
def rope(
    q, k, v, cos, sin, q_out, k_out, v_out, positions, w_q, w_k, eps,
    length, q_heads, k_heads, slots,
    q_sb, q_ss, q_sh, k_sb, k_ss, k_sh, v_sb, v_ss, v_sh,
    cos_sb, cos_ss, sin_sb, sin_ss,
    ko_sb, ko_ss, ko_sh, vo_sb, vo_ss, vo_sh,
    D: tl.constexpr, DV: tl.constexpr, HALF: tl.constexpr, FORM: tl.constexpr, BACKWARD: tl.constexpr, CACHE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """q_out dense [B, S, Hq, D]; k_out (and with CACHE v_out) by strides.

    CACHE writes row ``positions[s]`` of the caches in place of row s; a position outside [0, slots) is not written.
    Strides are in elements: _sb batch, _ss token, _sh head. The last dimensions are dense.
    """
    token = tl.program_id(0)
    block = tl.program_id(1)
    batch = token // length
    step = token % length
    c_at = batch * cos_sb + step * cos_ss
    s_at = batch * sin_sb + step * sin_ss
    q_blocks = tl.cdiv(q_heads, BLOCK_H)
    k_blocks = tl.cdiv(k_heads, BLOCK_H)
    slot = step
    if CACHE:
        slot = tl.load(positions + step).to(tl.int32)
    keep = (slot >= 0) & (slot < slots)
    if block < q_blocks:
        _heads(q, batch * q_sb + step * q_ss, q_sh, q_out, token * q_heads * D, D, cos, c_at, sin, s_at, w_q, eps,
               block * BLOCK_H, q_heads, D, HALF, FORM, BACKWARD, BLOCK_H, BLOCK, BLOCK_REST)  # fmt: skip
    elif block < q_blocks + k_blocks:
        count = tl.where(keep, k_heads, 0)
        _heads(k, batch * k_sb + step * k_ss, k_sh, k_out, batch * ko_sb + slot * ko_ss, ko_sh, cos, c_at, sin, s_at, w_k, eps,
               (block - q_blocks) * BLOCK_H, count, D, HALF, FORM, BACKWARD, BLOCK_H, BLOCK, BLOCK_REST)  # fmt: skip
    elif CACHE:
        _copy_heads(v, batch * v_sb + step * v_ss, v_sh, v_out, batch * vo_sb + slot * vo_ss, vo_sh,
                    (block - q_blocks - k_blocks) * BLOCK_H, k_heads, keep, DV, BLOCK_H, BLOCK_V)  # fmt: skip
