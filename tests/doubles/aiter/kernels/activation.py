"""``silu_and_mul``, ``gelu_and_mul`` (erf) and ``gelu_tanh_and_mul``: first half activated, second half multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from ..rounding import narrowed
from ..state import Double
from . import guards


def _gated(double: Double, name: str, arguments: dict[str, Any], activate: Callable[[Tensor], Tensor]) -> None:
    out, data = arguments["out"], arguments["input"]
    guards.half(double, name, out=out, input=data)
    guards.contiguous(double, name, out=out, input=data)
    double.require(data.dim() >= 1 and data.shape[-1] % 2 == 0, f"{name}: last dim of {tuple(data.shape)} is odd")
    guards.not_empty(double, name, out=out, input=data)
    width = data.shape[-1] // 2
    guards.shape(double, name, "out", out, (*data.shape[:-1], width))
    double.require(arguments.get("limit", 0.0) == 0.0, f"{name}: limit is not modelled")
    gate, up = data.float().split(width, dim=-1)
    out.copy_(narrowed(activate(gate) * up, out.dtype, double.arch, "activation"))


def silu_and_mul(double: Double, name: str, arguments: dict[str, Any]) -> None:
    _gated(double, name, arguments, functional.silu)


def gelu_and_mul(double: Double, name: str, arguments: dict[str, Any]) -> None:
    _gated(double, name, arguments, functional.gelu)


def gelu_tanh_and_mul(double: Double, name: str, arguments: dict[str, Any]) -> None:
    _gated(double, name, arguments, lambda gate: functional.gelu(gate, approximate="tanh"))
