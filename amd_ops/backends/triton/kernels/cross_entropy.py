"""Cross entropy of logits that come by blocks of the vocabulary: their log sum exp, and their gradient in place."""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import narrow, rounded


@triton.jit
def _tanh(x):
    """tanh of fp32 x; a series where the quotient would cancel."""
    square = x * x
    series = x * (1.0 - square * (0.3333333333333333 - square * 0.13333333333333333))
    return tl.where(square < 0.004, series, 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0))


@triton.jit
def _formed(
    logits, divisor, factor, cap, TYPE: tl.constexpr,
    DIVIDED: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """(what stock's loss is given, the soft cap's tanh), both fp32: every statement rounded to TYPE as there."""
    value = logits.to(tl.float32)
    if DIVIDED:
        value = rounded(value / divisor, TYPE)
    if SCALED:
        value = rounded(value * factor, TYPE)
    tanh = value
    if CAPPED:
        tanh = rounded(_tanh(rounded(value / cap, TYPE)), TYPE)
        value = rounded(tanh * cap, TYPE)
    return value, tanh


@triton.jit
def _log_sum(peak, total):
    """peak + log(total), where the largest of nothing but -inf is -inf itself."""
    return tl.where(peak == -float("inf"), 0.0, peak) + tl.log(total)


@triton.jit(do_not_specialize=["first"])
def add_block(
    logits, labels, total, target, columns, stride, first, divisor, factor, cap,
    DIVIDED: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the log sum exp of logits [T, columns] to ``total``, and put each label's logit into ``target``; fp32 [T].

    Column 0 is word ``first``. One program walks one row.
    """
    TYPE: tl.constexpr = logits.dtype.element_ty
    row = tl.program_id(0)
    at = logits + row.to(tl.int64) * stride
    peak = tl.load(total + row)
    summed = tl.where(peak == -float("inf"), 0.0, 1.0)
    for start in range(0, columns, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < columns
        value, _ = _formed(
            tl.load(at + cols, mask=mask, other=0.0), divisor, factor, cap, TYPE, DIVIDED, SCALED, CAPPED
        )
        value = tl.where(mask, value, -float("inf"))
        above = tl.maximum(peak, tl.max(value, 0))
        base = tl.where(above == -float("inf"), 0.0, above)
        summed = summed * tl.exp(peak - base) + tl.sum(tl.exp(value - base), 0)
        peak = above
    tl.store(total + row, _log_sum(peak, summed))
    column = tl.load(labels + row) - first
    inside = (column >= 0) & (column < columns)
    value, _ = _formed(
        tl.load(at + column, mask=inside, other=0.0), divisor, factor, cap, TYPE, DIVIDED, SCALED, CAPPED
    )
    tl.store(target + row, value, mask=inside)


@triton.jit(do_not_specialize=["first"])
def block_gradient(
    logits, labels, total, dy, blocks, columns, stride, first, divisor, factor, cap,
    DIVIDED: tl.constexpr, SCALED: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of sum(dy * losses) over logits [T, columns]; ``blocks`` programs share a row."""
    TYPE: tl.constexpr = logits.dtype.element_ty
    row = tl.program_id(0) // blocks
    cols = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < columns
    at = logits + row.to(tl.int64) * stride + cols
    value, tanh = _formed(tl.load(at, mask=mask, other=0.0), divisor, factor, cap, TYPE, DIVIDED, SCALED, CAPPED)
    share = tl.exp(value - tl.load(total + row))
    label = tl.load(labels + row) - first
    grad = tl.where(cols == label, share - 1.0, share) * tl.load(dy + row)
    if CAPPED:
        grad = grad * (1.0 - tanh * tanh)
    if SCALED:
        grad = grad * factor
    if DIVIDED:
        grad = grad / divisor
    tl.store(at, narrow(grad, TYPE), mask=mask)
