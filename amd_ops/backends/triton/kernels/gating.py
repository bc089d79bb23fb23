"""Gates by a sigmoid, a launch each. Rounds where stock's statements round."""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import narrow, rounded, row_start, sigmoid


@triton.jit(do_not_specialize=["rows", "g_n1", "g_n2"])
def sigmoid_gate(
    x, gate, y, rows, g_n1, g_n2, g_s0, g_s1, g_s2, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """y [rows, D] = x [rows, D], dense, times the sigmoid of the gate's rows."""
    TYPE: tl.constexpr = y.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (col < D)
    opened = tl.load(gate + row_start(row, g_n1, g_n2, g_s0, g_s1, g_s2) + col, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + row * D + col, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * D + col, narrow(value * rounded(sigmoid(opened), TYPE), TYPE), mask=mask)


@triton.jit(do_not_specialize=["e_s", "s_s", "h_s"])
def add_shared(
    experts, shared, hidden, weight, y, e_s, s_s, h_s,
    N: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """y [T, N] = experts + sigmoid(hidden [T, H] . weight [H]) * shared. Each program makes its token's gate itself."""
    TYPE: tl.constexpr = y.dtype.element_ty
    token = tl.program_id(0)
    total = tl.zeros([BLOCK_H], tl.float32)
    for start in range(0, H, BLOCK_H):
        at = start + tl.arange(0, BLOCK_H)
        value = tl.load(hidden + token * h_s + at, mask=at < H, other=0.0).to(tl.float32)
        total += value * tl.load(weight + at, mask=at < H, other=0.0).to(tl.float32)
    gate = rounded(sigmoid(rounded(tl.sum(total, axis=0), TYPE)), TYPE)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(shared + token * s_s + col, mask=col < N, other=0.0).to(tl.float32)
    other = tl.load(experts + token * e_s + col, mask=col < N, other=0.0).to(tl.float32)
    tl.store(y + token * N + col, narrow(other + rounded(gate * own, TYPE), TYPE), mask=col < N)
