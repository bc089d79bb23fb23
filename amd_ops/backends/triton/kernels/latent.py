"""Latent attention's q and k in one launch: rotated parts behind the parts without position, the key's for all heads.

A program takes BLOCK_H heads of one token, first q's, then k's. Where the key's rotated part alone is wanted, for a
cache, it is one head without anything in front (PK = 0). Rounds where stock's statements round.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import narrow, rounded


@triton.jit
def _joined(
    rest, r_at, r_sh, turn, t_at, t_sh, out, o_at, o_sh, cos, c_at, sin, s_at, first, heads,
    P: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    OUT: tl.constexpr = out.dtype.element_ty
    head = first + tl.arange(0, BLOCK_H)[:, None]
    if P > 0:
        keep = tl.arange(0, BLOCK_P)[None, :]
        mask = (head < heads) & (keep < P)
        still = tl.load(rest + r_at + head * r_sh + keep, mask=mask, other=0.0)
        tl.store(out + o_at + head * o_sh + keep, still, mask=mask)
    col = tl.arange(0, BLOCK)[None, :]
    inside = col < HALF
    mask = (head < heads) & inside
    own = turn + t_at + head * t_sh
    if PAIRS:
        a = tl.load(own + 2 * col, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(own + 2 * col + 1, mask=mask, other=0.0).to(tl.float32)
    else:
        a = tl.load(own + col, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(own + HALF + col, mask=mask, other=0.0).to(tl.float32)
    cos_a = tl.load(cos + c_at + col, mask=inside, other=0.0).to(tl.float32)
    cos_b = tl.load(cos + c_at + HALF + col, mask=inside, other=0.0).to(tl.float32)
    sin_a = tl.load(sin + s_at + col, mask=inside, other=0.0).to(tl.float32)
    sin_b = tl.load(sin + s_at + HALF + col, mask=inside, other=0.0).to(tl.float32)
    left = rounded(a * cos_a, OUT) - rounded(b * sin_a, OUT)
    right = rounded(b * cos_b, OUT) + rounded(a * sin_b, OUT)
    target = out + o_at + head * o_sh + P
    tl.store(target + col, narrow(left, OUT), mask=mask)
    tl.store(target + HALF + col, narrow(right, OUT), mask=mask)


@triton.jit(do_not_specialize=["length", "heads", "k_heads"])
def latent_rope(
    q_pass, q_rot, k_pass, k_rot, cos, sin, q, k, length, heads, k_heads,
    qp_sb, qp_ss, qp_sh, qr_sb, qr_ss, qr_sh, kp_sb, kp_ss, kp_sh, kr_sb, kr_ss, cos_sb, cos_ss, sin_sb, sin_ss,
    P: tl.constexpr, PK: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """q [B, H, S, P + 2 * HALF] and k [B, k_heads, S, PK + 2 * HALF], dense. PK is P or 0; strides in elements: _sb
    batch, _ss token, _sh head.
    """
    D: tl.constexpr = P + 2 * HALF
    DK: tl.constexpr = PK + 2 * HALF
    token = tl.program_id(0)
    block = tl.program_id(1)
    batch = token // length
    step = token % length
    c_at = batch * cos_sb + step * cos_ss
    s_at = batch * sin_sb + step * sin_ss
    blocks = tl.cdiv(heads, BLOCK_H)
    if block < blocks:
        _joined(q_pass, batch * qp_sb + step * qp_ss, qp_sh, q_rot, batch * qr_sb + step * qr_ss, qr_sh,
                q, (batch * heads * length + step) * D, length * D,
                cos, c_at, sin, s_at, block * BLOCK_H, heads, P, HALF, PAIRS, BLOCK_H, BLOCK, BLOCK_P)  # fmt: skip
    else:
        _joined(k_pass, batch * kp_sb + step * kp_ss, kp_sh, k_rot, batch * kr_sb + step * kr_ss, 0,
                k, (batch * k_heads * length + step) * DK, length * DK,
                cos, c_at, sin, s_at, (block - blocks) * BLOCK_H, k_heads,
                PK, HALF, PAIRS, BLOCK_H, BLOCK, BLOCK_P)  # fmt: skip
