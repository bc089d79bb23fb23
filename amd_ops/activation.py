"""Gated activations: [..., 2d] -> [..., d], the first half is activated and multiplies the second (gate | up order).

Tiers: aiter (one kernel, fp32 inside, one rounding) -> torch (F.silu or F.gelu, then the product) -> eager (plain
formulas).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import aiter
from .backends.triton import tier as triton
from .checks import TORCH_ERRORS, complaint, describe
from .dispatch import Op, Tier, always
from .tracing import traced

_compiling = torch.compiler.is_dynamo_compiling


def _eager_silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _eager_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def _eager_gelu_tanh(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3))))


def _gated(activate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def compute(x: Tensor) -> Tensor:
        if x.shape[-1] & 1:
            raise ValueError("odd last dimension")
        gate, up = x.chunk(2, -1)
        return activate(gate) * up

    return compute


def _in_fp32(activate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The reference computes in fp32 and rounds the activation once, like torch's own kernels."""

    def rounded(gate: Tensor) -> Tensor:
        if not gate.is_floating_point():
            raise ValueError("not floating point")
        return activate(gate.float()).to(gate.dtype)

    return _gated(rounded)


def _torch_gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


torch_silu_and_mul = _gated(F.silu)
torch_gelu_and_mul = _gated(F.gelu)
torch_gelu_tanh_and_mul = _gated(_torch_gelu_tanh)
eager_silu_and_mul = _in_fp32(_eager_silu)
eager_gelu_and_mul = _in_fp32(_eager_gelu)
eager_gelu_tanh_and_mul = _in_fp32(_eager_gelu_tanh)


def _op(name: str, in_torch: Callable[[Tensor], Tensor], in_eager: Callable[[Tensor], Tensor]) -> Op:
    return Op(
        name,
        [
            Tier("aiter", aiter.offer(name, "USE_OPTIMIZED_OPS", in_eager), aiter.wanted("USE_OPTIMIZED_OPS")),
            Tier("triton", triton.offer(name, "USE_OPTIMIZED_OPS", in_eager), triton.wanted("USE_OPTIMIZED_OPS")),
            Tier("torch", always(in_torch)),
            Tier("eager", always(in_eager)),
        ],
    )


_silu = _op("silu_and_mul", torch_silu_and_mul, eager_silu_and_mul)
_gelu = _op("gelu_and_mul", torch_gelu_and_mul, eager_gelu_and_mul)
_gelu_tanh = _op("gelu_tanh_and_mul", torch_gelu_tanh_and_mul, eager_gelu_tanh_and_mul)


def _like(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


_silu_traced = traced(_silu, "(Tensor x) -> Tensor", torch_silu_and_mul, _like)
_gelu_traced = traced(_gelu, "(Tensor x) -> Tensor", torch_gelu_and_mul, _like)
_gelu_tanh_traced = traced(_gelu_tanh, "(Tensor x) -> Tensor", torch_gelu_tanh_and_mul, _like)


@_silu.public
def silu_and_mul(x: Tensor) -> Tensor:
    """silu(x[..., :d]) * x[..., d:]. x [..., 2d] of any float dtype and layout; returns [..., d] in x's dtype."""
    if _compiling():
        result: Tensor = _silu_traced.call(x)
        return result
    _silu.calls += 1
    try:
        result = _silu.call(x)
    except TORCH_ERRORS:
        _diagnose("silu_and_mul", x)
        raise
    return result


@_gelu.public
def gelu_and_mul(x: Tensor) -> Tensor:
    """gelu(x[..., :d]) * x[..., d:] with the exact (erf) gelu. Shapes and dtypes as in silu_and_mul."""
    if _compiling():
        result: Tensor = _gelu_traced.call(x)
        return result
    _gelu.calls += 1
    try:
        result = _gelu.call(x)
    except TORCH_ERRORS:
        _diagnose("gelu_and_mul", x)
        raise
    return result


@_gelu_tanh.public
def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    """gelu(x[..., :d]) * x[..., d:] with the tanh approximation. Shapes and dtypes as in silu_and_mul."""
    if _compiling():
        result: Tensor = _gelu_tanh_traced.call(x)
        return result
    _gelu_tanh.calls += 1
    try:
        result = _gelu_tanh.call(x)
    except TORCH_ERRORS:
        _diagnose("gelu_tanh_and_mul", x)
        raise
    return result


def _diagnose(op: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 1 or x.shape[-1] % 2:
        raise complaint(op, "x", describe(x), "a float tensor [..., 2d] (gate, then up)")
