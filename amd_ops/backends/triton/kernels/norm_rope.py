"""The backward of a norm of every head of q and k followed by a rotation, in one launch.

Nothing but the inputs of the forward is read: a head is normed again, its gradient turned back, and taken through the
norm. A program walks over ROWS heads at a time and adds up its part of the weight's gradient, so no order is random.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import narrow, rounded


@triton.jit
def _turned_back(
    g, at, cos, c_at, sin, s_at, col, mask, inside, HALF: tl.constexpr, TYPE: tl.constexpr
):  # fmt: skip
    """The gradients of both halves in front of the rotation, rounded as stock's statements round them."""
    G: tl.constexpr = g.dtype.element_ty
    a = tl.load(g + at + col, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(g + at + HALF + col, mask=mask, other=0.0).to(tl.float32)
    cos_a = tl.load(cos + c_at + col, mask=mask, other=0.0).to(tl.float32)
    cos_b = tl.load(cos + c_at + HALF + col, mask=mask, other=0.0).to(tl.float32)
    sin_a = tl.load(sin + s_at + col, mask=mask, other=0.0).to(tl.float32)
    sin_b = tl.load(sin + s_at + HALF + col, mask=mask, other=0.0).to(tl.float32)
    left = rounded(a * cos_a, G) + rounded(b * sin_b, G)
    right = rounded(b * cos_b, G) - rounded(a * sin_a, G)
    return rounded(left, TYPE), rounded(right, TYPE)


@triton.jit
def _heads(
    x, g, w, dx, dw, cos, sin, eps, program, programs, tokens, length, heads,
    x_sb, x_ss, x_sh, g_sb, g_ss, g_sh, cos_sb, cos_ss, sin_sb, sin_ss,
    D: tl.constexpr, HALF: tl.constexpr, FORM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """dx dense [B, S, H, D] and row ``program`` of dw [programs, D] (fp32), for the heads of q or of k."""
    X: tl.constexpr = x.dtype.element_ty
    SHIFT: tl.constexpr = 1.0 if FORM == "gemma" else 0.0
    col = tl.arange(0, BLOCK)[None, :]
    tail = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
    inside = col < HALF
    held = tail < D
    w_a = tl.load(w + col, mask=inside, other=0.0).to(tl.float32) + SHIFT
    w_b = tl.load(w + HALF + col, mask=inside, other=0.0).to(tl.float32) + SHIFT
    w_c = tl.load(w + tail, mask=held, other=0.0).to(tl.float32) + SHIFT
    sum_a = tl.zeros([ROWS, BLOCK], tl.float32)
    sum_b = tl.zeros([ROWS, BLOCK], tl.float32)
    sum_c = tl.zeros([ROWS, BLOCK_REST], tl.float32)
    for first in range(program * ROWS, tokens * heads, programs * ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        there = row < tokens * heads
        token = row // heads
        batch = token // length
        step = token % length
        x_at = batch * x_sb + step * x_ss + (row % heads) * x_sh
        g_at = batch * g_sb + step * g_ss + (row % heads) * g_sh
        mask = there & inside
        rest = there & held
        g_a, g_b = _turned_back(g, g_at, cos, batch * cos_sb + step * cos_ss, sin, batch * sin_sb + step * sin_ss,
                                col, mask, inside, HALF, X)  # fmt: skip
        g_c = rounded(tl.load(g + g_at + tail, mask=rest, other=0.0).to(tl.float32), X)
        a = tl.load(x + x_at + col, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x + x_at + HALF + col, mask=mask, other=0.0).to(tl.float32)
        c = tl.load(x + x_at + tail, mask=rest, other=0.0).to(tl.float32)
        square = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(c * c, axis=1)
        scale = tl.rsqrt(square[:, None] / D + eps)
        a *= scale
        b *= scale
        c *= scale
        if FORM == "llama":
            sum_a += g_a * rounded(a, X)
            sum_b += g_b * rounded(b, X)
            sum_c += g_c * rounded(c, X)
        else:
            sum_a += g_a * a
            sum_b += g_b * b
            sum_c += g_c * c
        g_a *= w_a
        g_b *= w_b
        g_c *= w_c
        mean = (tl.sum(g_a * a, axis=1) + tl.sum(g_b * b, axis=1) + tl.sum(g_c * c, axis=1))[:, None] / D
        tl.store(dx + row * D + col, narrow(scale * (g_a - a * mean), X), mask=mask)
        tl.store(dx + row * D + HALF + col, narrow(scale * (g_b - b * mean), X), mask=mask)
        tl.store(dx + row * D + tail, narrow(scale * (g_c - c * mean), X), mask=rest)
    at = program * D + tl.arange(0, BLOCK)
    tl.store(dw + at, tl.sum(sum_a, axis=0), mask=tl.arange(0, BLOCK) < HALF)
    tl.store(dw + HALF + at, tl.sum(sum_b, axis=0), mask=tl.arange(0, BLOCK) < HALF)
    end = 2 * HALF + tl.arange(0, BLOCK_REST)
    tl.store(dw + program * D + end, tl.sum(sum_c, axis=0), mask=end < D)


@triton.jit(do_not_specialize=["tokens", "length", "q_heads", "k_heads", "q_programs"])
def norm_rope_backward(
    q, k, g_q, g_k, w_q, w_k, dq, dk, dw_q, dw_k, cos, sin, eps,
    tokens, length, q_heads, k_heads, q_programs,
    q_sb, q_ss, q_sh, k_sb, k_ss, k_sh, gq_sb, gq_ss, gq_sh, gk_sb, gk_ss, gk_sh,
    cos_sb, cos_ss, sin_sb, sin_ss,
    D: tl.constexpr, HALF: tl.constexpr, FORM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """The first ``q_programs`` programs take q's heads, the others k's. Strides as in the forward; last ones dense."""
    program = tl.program_id(0)
    if program < q_programs:
        _heads(q, g_q, w_q, dq, dw_q, cos, sin, eps, program, q_programs, tokens, length, q_heads,
               q_sb, q_ss, q_sh, gq_sb, gq_ss, gq_sh, cos_sb, cos_ss, sin_sb, sin_ss,
               D, HALF, FORM, ROWS, BLOCK, BLOCK_REST)  # fmt: skip
    else:
        _heads(k, g_k, w_k, dk, dw_k, cos, sin, eps, program - q_programs, tl.num_programs(0) - q_programs, tokens,
               length, k_heads, k_sb, k_ss, k_sh, gk_sb, gk_ss, gk_sh, cos_sb, cos_ss, sin_sb, sin_ss,
               D, HALF, FORM, ROWS, BLOCK, BLOCK_REST)  # fmt: skip
