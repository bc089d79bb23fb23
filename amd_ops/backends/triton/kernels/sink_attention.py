"""Attention of one query per sequence with a sink per head, in one launch. A program is one head of one sequence.

The keys are walked once, with a running maximum that begins at the sink's logit. Sums are fp32 throughout.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import narrow


@triton.jit(do_not_specialize=["columns", "scale", "m_sb", "m_sh", "m_sk"])
def sink_attention(
    q, k, v, sinks, mask, out, scale, columns,
    q_sb, q_sh, k_sb, k_sh, k_sk, v_sb, v_sh, v_sk, m_sb, m_sh, m_sk,
    H: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, MASK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """out dense [B, H, DV]. MASK: "" for none, "bool" (bytes), "add".

    Strides in elements: _sb batch, _sh head, _sk key.
    """
    batch = tl.program_id(0)
    head = tl.program_id(1)
    col = tl.arange(0, BLOCK_D)
    wide = tl.arange(0, BLOCK_V)
    query = tl.load(q + batch * q_sb + head * q_sh + col, mask=col < D, other=0.0).to(tl.float32)
    top = tl.load(sinks + head).to(tl.float32)
    total = 1.0
    value = tl.zeros([BLOCK_V], tl.float32)
    keys = k + batch * k_sb + (head // GROUPS) * k_sh
    values = v + batch * v_sb + (head // GROUPS) * v_sh
    seen = mask + batch * m_sb + head * m_sh
    for start in range(0, columns, BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)
        inside = row < columns
        tile = tl.load(keys + row[:, None] * k_sk + col[None, :], mask=inside[:, None] & (col < D)[None, :], other=0.0)
        score = tl.sum(tile.to(tl.float32) * query[None, :], axis=1) * scale
        if MASK == "bool":
            inside = inside & (tl.load(seen + row * m_sk, mask=inside, other=0) != 0)
        elif MASK == "add":
            score += tl.load(seen + row * m_sk, mask=inside, other=0.0).to(tl.float32)
        score = tl.where(inside, score, -float("inf"))
        best = tl.maximum(top, tl.max(score, axis=0))
        level = tl.where(best == -float("inf"), 0.0, best)
        share = tl.exp(score - level)
        shrink = tl.exp(top - level)
        total = total * shrink + tl.sum(share, axis=0)
        near = inside[:, None] & (wide < DV)[None, :]
        tile = tl.load(values + row[:, None] * v_sk + wide[None, :], mask=near, other=0.0)
        value = value * shrink + tl.sum(tile.to(tl.float32) * share[:, None], axis=0)
        top = best
    value = value / tl.where(total == 0.0, 1.0, total)
    tl.store(out + (batch * H + head) * DV + wide, narrow(value, out.dtype.element_ty), mask=wide < DV)
