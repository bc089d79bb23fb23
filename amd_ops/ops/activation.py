"""Gated activations: [..., 2d] -> [..., d], the first half is activated and multiplies the second (gate | up order).

Tiers: aiter (one kernel, fp32 inside, one rounding) -> torch (F.silu or F.gelu, then the product) -> eager (plain
formulas). Where gradients are wanted the torch tier saves its input alone, half of what stock's statements save, and
computes the activation again in the backward: the same numbers, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import Op, always
from ..modes import transformed
from .tiers import make_op

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


Slope = Callable[[Tensor, Tensor], Tensor]
"""(gradient of the activation, its input) -> gradient of the input: torch's own kernels."""


class _Gated(torch.autograd.Function):
    """activate(gate) * up that saves its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activate: Callable[[Tensor], Tensor], slope: Slope) -> Tensor:
        ctx.save_for_backward(x)
        ctx.activate, ctx.slope = activate, slope
        gate, up = x.chunk(2, -1)
        return activate(gate) * up

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: stock's statements have one
            return *torch.autograd.grad(_gated(ctx.activate)(x), x, dy, create_graph=True), None, None
        gate, up = x.chunk(2, -1)
        out = torch.empty_like(x)
        d_gate, d_up = out.chunk(2, -1)
        torch.mul(dy, ctx.activate(gate), out=d_up)
        d_gate.copy_(ctx.slope(dy * up, gate))
        return out, None, None


def _saving_input(activate: Callable[[Tensor], Tensor], slope: Slope) -> Callable[[Tensor], Tensor]:
    """The torch tier: as _gated, through the node above where autograd records."""
    plain = _gated(activate)

    def compute(x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled() and not x.shape[-1] & 1 and not transformed():
            made: Tensor = _Gated.apply(x, activate, slope)  # type: ignore[no-untyped-call]
            return made
        return plain(x)

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


_aten = torch.ops.aten
torch_silu_and_mul = _saving_input(F.silu, _aten.silu_backward)
torch_gelu_and_mul = _saving_input(F.gelu, _aten.gelu_backward)
torch_gelu_tanh_and_mul = _saving_input(_torch_gelu_tanh, lambda dy, x: _aten.gelu_backward(dy, x, approximate="tanh"))
eager_silu_and_mul = _in_fp32(_eager_silu)
eager_gelu_and_mul = _in_fp32(_eager_gelu)
eager_gelu_tanh_and_mul = _in_fp32(_eager_gelu_tanh)


def _op(name: str, in_torch: Callable[[Tensor], Tensor], in_eager: Callable[[Tensor], Tensor]) -> Op:
    return make_op(name, "USE_OPTIMIZED_OPS", torch=always(in_torch), eager=in_eager)


_silu = _op("silu_and_mul", torch_silu_and_mul, eager_silu_and_mul)
_gelu = _op("gelu_and_mul", torch_gelu_and_mul, eager_gelu_and_mul)
_gelu_tanh = _op("gelu_tanh_and_mul", torch_gelu_tanh_and_mul, eager_gelu_tanh_and_mul)


@_silu.public
def silu_and_mul(x: Tensor) -> Tensor:
    """silu(x[..., :d]) * x[..., d:]. x [..., 2d] of any float dtype and layout; returns [..., d] in x's dtype.

    Examples:
        >>> amd_ops.silu_and_mul(torch.tensor([0.0, 5.0]))
        tensor([0.])
    """
    if _compiling():
        return torch_silu_and_mul(x)
    _silu.calls += 1
    try:
        result: Tensor = _silu.call(x)
    except TORCH_ERRORS:
        _diagnose("silu_and_mul", x)
        raise
    return result


@_gelu.public
def gelu_and_mul(x: Tensor) -> Tensor:
    """gelu(x[..., :d]) * x[..., d:] with the exact (erf) gelu. Shapes and dtypes as in silu_and_mul.

    Examples:
        >>> amd_ops.gelu_and_mul(torch.tensor([0.0, 5.0]))
        tensor([0.])
    """
    if _compiling():
        return torch_gelu_and_mul(x)
    _gelu.calls += 1
    try:
        result: Tensor = _gelu.call(x)
    except TORCH_ERRORS:
        _diagnose("gelu_and_mul", x)
        raise
    return result


@_gelu_tanh.public
def gelu_tanh_and_mul(x: Tensor) -> Tensor:
    """gelu(x[..., :d]) * x[..., d:] with the tanh approximation. Shapes and dtypes as in silu_and_mul.

    Examples:
        >>> amd_ops.gelu_tanh_and_mul(torch.tensor([0.0, 5.0]))
        tensor([0.])
    """
    if _compiling():
        return torch_gelu_tanh_and_mul(x)
    _gelu_tanh.calls += 1
    try:
        result: Tensor = _gelu_tanh.call(x)
    except TORCH_ERRORS:
        _diagnose("gelu_tanh_and_mul", x)
        raise
    return result


def _diagnose(op: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 1 or x.shape[-1] % 2:
        raise complaint(op, "x", describe(x), "a float tensor [..., 2d] (gate, then up)")
