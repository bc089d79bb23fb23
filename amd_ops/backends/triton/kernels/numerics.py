"""Arithmetic that every kernel shares: fp32 inside, and roundings where the stock formulas round.

The rounding to bf16 is spelled out in integers: Triton's CPU interpreter truncates when it casts, and what the tests
run must be what the GPU runs. Nothing here comes from libdevice, which the interpreter lacks.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _bf16_bits(value):
    """Round fp32 to bf16, ties to even, and return its 32 bits (the lower 16 are zero). NaN stays NaN."""
    bits = value.to(tl.uint32, bitcast=True)
    even = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return tl.where(value == value, even, 0x7FC00000)


@triton.jit
def rounded(value, TYPE: tl.constexpr):
    """fp32 in, the nearest value of TYPE as fp32 out: what a stock module has after storing to TYPE."""
    if tl.bfloat16 == TYPE:
        return _bf16_bits(value).to(tl.float32, bitcast=True)
    elif tl.float16 == TYPE:
        # The choice stands between this rounding and what is added to it: without it the compiler multiplies in fp16
        # and then fuses product and sum, which rounds once where stock rounds twice.
        return tl.where(value == value, value.to(tl.float16).to(tl.float32), value)
    else:
        return value


@triton.jit
def narrow(value, TYPE: tl.constexpr):
    """fp32 in, TYPE out, rounded once to the nearest."""
    if tl.bfloat16 == TYPE:
        return (_bf16_bits(value) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(TYPE)


@triton.jit
def row_start(row, n1, n2, s0, s1, s2):
    """Where a row begins: ``row`` counts a grid [*, n1, n2] of rows whose strides are s0, s1, s2 (in elements)."""
    outer = row // n2
    return (outer // n1) * s0 + (outer % n1) * s1 + (row % n2) * s2


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); the exponential may overflow to inf, the quotient is then an exact 0."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def activation(x, KIND: tl.constexpr):
    """silu, gelu (erf) or gelu_tanh of fp32 x. The tanh form is x * sigmoid(2u): equal, and without cancellation."""
    if KIND == "silu":
        return x / (1.0 + tl.exp(-x))
    elif KIND == "gelu":
        return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    else:
        return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def activation_slope(x, KIND: tl.constexpr):
    """The derivative of ``activation`` at fp32 x."""
    if KIND == "silu":
        s = sigmoid(x)
        return s * (1.0 + x * (1.0 - s))
    elif KIND == "gelu":
        bell = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * bell
    else:
        s = sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        return s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
