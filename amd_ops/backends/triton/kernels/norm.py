"""RMS norm, with and without the residual addition in front, and its backward.

A program takes ROWS rows of D elements. Rows up to BLOCK are held in registers; longer ones are walked twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import narrow, rounded, row_start

_SIZES = ["rows", "x_n1", "x_n2", "r_n1", "r_n2"]


@triton.jit
def _scaled(normed, weight, FORM: tl.constexpr, X_TYPE: tl.constexpr, W_TYPE: tl.constexpr):
    """Apply the weight as the stock module of this form does, roundings included; fp32 in and out."""
    if FORM == "llama":
        return rounded(normed, X_TYPE) * weight
    elif FORM == "gemma":
        return normed * (1.0 + weight)
    elif FORM == "t5":
        if tl.float32 == W_TYPE:
            return normed * weight
        else:
            return rounded(normed, W_TYPE) * weight
    else:
        return normed * weight


@triton.jit
def _read(x, r, x_at, r_at, cols, x_sd, r_sd, mask, ADD: tl.constexpr):
    """x, or residual + x as it is stored: rounded to x's dtype."""
    value = tl.load(x + x_at + cols * x_sd, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        value = rounded(
            tl.load(r + r_at + cols * r_sd, mask=mask, other=0.0).to(tl.float32) + value, x.dtype.element_ty
        )
    return value


@triton.jit(do_not_specialize=_SIZES)
def rms_norm(
    x, r, w, y, total, rows, eps,
    x_n1, x_n2, x_s0, x_s1, x_s2, x_sd,
    r_n1, r_n2, r_s0, r_s1, r_s2, r_sd,
    w_sd,
    D: tl.constexpr, FORM: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y [rows, D] = norm of x, or of residual + x, which then also goes to ``total`` [rows, D]."""
    X: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    x_at = row_start(row, x_n1, x_n2, x_s0, x_s1, x_s2)
    r_at = x_at
    if ADD:
        r_at = row_start(row, r_n1, r_n2, r_s0, r_s1, r_s2)
    cols = tl.arange(0, BLOCK)[None, :]
    if D <= BLOCK:
        mask = (row < rows) & (cols < D)
        value = _read(x, r, x_at, r_at, cols, x_sd, r_sd, mask, ADD)
        if ADD:
            tl.store(total + row * D + cols, narrow(value, X), mask=mask)
        scale = tl.rsqrt(tl.sum(value * value, axis=1)[:, None] / D + eps)
        weight = tl.load(w + cols * w_sd, mask=cols < D, other=0.0).to(tl.float32)
        out = _scaled(value * scale, weight, FORM, X, w.dtype.element_ty)
        tl.store(y + row * D + cols, narrow(out, y.dtype.element_ty), mask=mask)
    else:
        square = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, D, BLOCK):
            mask = (row < rows) & (start + cols < D)
            value = _read(x, r, x_at, r_at, start + cols, x_sd, r_sd, mask, ADD)
            if ADD:
                tl.store(total + row * D + start + cols, narrow(value, X), mask=mask)
            square += value * value
        scale = tl.rsqrt(tl.sum(square, axis=1)[:, None] / D + eps)
        for start in range(0, D, BLOCK):
            mask = (row < rows) & (start + cols < D)
            value = _read(x, r, x_at, r_at, start + cols, x_sd, r_sd, mask, ADD)
            weight = tl.load(w + (start + cols) * w_sd, mask=start + cols < D, other=0.0).to(tl.float32)
            out = _scaled(value * scale, weight, FORM, X, w.dtype.element_ty)
            tl.store(y + row * D + start + cols, narrow(out, y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "x_n1", "x_n2", "g_n1", "g_n2", "t_n1", "t_n2"])
def rms_norm_backward(
    x, w, dy, dtotal, dx, dw, rows, eps,
    x_n1, x_n2, x_s0, x_s1, x_s2, x_sd,
    g_n1, g_n2, g_s0, g_s1, g_s2, g_sd,
    t_n1, t_n2, t_s0, t_s1, t_s2, t_sd,
    w_sd,
    D: tl.constexpr, FORM: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx [rows, D] and partial sums of dw, one row of ``dw`` [programs, D] (fp32) per program. D <= BLOCK.

    ADD adds ``dtotal``, the gradient that reached the residual stream by another way.
    """
    X: tl.constexpr = x.dtype.element_ty
    cols = tl.arange(0, BLOCK)[None, :]
    weight = tl.load(w + cols * w_sd, mask=cols < D, other=0.0).to(tl.float32)
    if FORM == "gemma":
        weight += 1.0
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        mask = (row < rows) & (cols < D)
        x_at = row_start(row, x_n1, x_n2, x_s0, x_s1, x_s2)
        g_at = row_start(row, g_n1, g_n2, g_s0, g_s1, g_s2)
        value = tl.load(x + x_at + cols * x_sd, mask=mask, other=0.0).to(tl.float32)
        grad = tl.load(dy + g_at + cols * g_sd, mask=mask, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, axis=1)[:, None] / D + eps)
        normed = value * scale
        if FORM == "llama":
            sums += grad * rounded(normed, X)
        else:
            sums += grad * normed
        inner = grad * weight
        out = scale * (inner - normed * (tl.sum(inner * normed, axis=1)[:, None] / D))
        if ADD:
            t_at = row_start(row, t_n1, t_n2, t_s0, t_s1, t_s2)
            out += tl.load(dtotal + t_at + cols * t_sd, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx + row * D + cols, narrow(out, X), mask=mask)
    at = tl.program_id(0) * D + tl.arange(0, BLOCK)
    tl.store(dw + at, tl.sum(sums, axis=0), mask=tl.arange(0, BLOCK) < D)
