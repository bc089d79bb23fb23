"""Gated activations [.., 2d] -> [.., d] and their backward: one program per BLOCK columns of one row."""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import activation, activation_slope, narrow, rounded, row_start


@triton.jit(do_not_specialize=["blocks", "n1", "n2"])
def gate(x, y, blocks, n1, n2, s0, s1, s2, sd, D: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """y [rows, D] = activation of the first D columns, rounded, times the next D. ``blocks`` programs share a row."""
    TYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0) // blocks
    cols = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    at = x + row_start(row, n1, n2, s0, s1, s2)
    first = tl.load(at + cols * sd, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + (cols + D) * sd, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * D + cols, narrow(rounded(activation(first, KIND), TYPE) * second, TYPE), mask=mask)


@triton.jit(do_not_specialize=["blocks", "n1", "n2", "g_n1", "g_n2"])
def gate_backward(
    x, dy, dx, blocks,
    n1, n2, s0, s1, s2, sd,
    g_n1, g_n2, g_s0, g_s1, g_s2, g_sd,
    D: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx [rows, 2 D] of ``gate``."""
    TYPE: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0) // blocks
    cols = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < D
    at = x + row_start(row, n1, n2, s0, s1, s2)
    first = tl.load(at + cols * sd, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + (cols + D) * sd, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(dy + row_start(row, g_n1, g_n2, g_s0, g_s1, g_s2) + cols * g_sd, mask=mask, other=0.0)
    grad = grad.to(tl.float32)
    out = dx + row * 2 * D
    tl.store(out + cols, narrow(grad * second * activation_slope(first, KIND), TYPE), mask=mask)
    tl.store(out + D + cols, narrow(grad * rounded(activation(first, KIND), TYPE), TYPE), mask=mask)
