"""RMS norms with and without residual add: 2-D contiguous [rows, width], weight [width] of the same dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rounding import narrowed
from ..state import Double
from . import guards


def _check(double: Double, name: str, arguments: dict[str, Any]) -> None:
    given = guards.tensors(arguments)
    data, weight, epsilon = arguments["input"], arguments["weight"], arguments["epsilon"]
    if double.catalog.behaviour["rmsnorm_takes_float32"] and data.dtype == torch.float32:
        guards.same_dtype(double, name, **given)
    else:
        guards.half(double, name, **given)
    double.require(data.dim() == 2, f"{name}: input has {data.dim()} dimensions, [rows, width] expected")
    guards.contiguous(double, name, **given)
    guards.not_empty(double, name, input=data)
    guards.shape(double, name, "weight", weight, (data.shape[1],))
    for key, tensor in given.items():
        if key != "weight":
            guards.shape(double, name, key, tensor, tuple(data.shape))
    double.require(epsilon >= 0.0, f"{name}: epsilon {epsilon}")
    sensitive = arguments.get("use_model_sensitive_rmsnorm", 0)
    double.require(sensitive in (0, 1), f"{name}: use_model_sensitive_rmsnorm is {sensitive}")
    gemma = arguments.get("gemma_norm", False)
    double.require(gemma in (False, True), f"{name}: gemma_norm is {gemma!r}")


def _normalise(double: Double, data: Tensor, arguments: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """fp32 ``data`` normalised and weighted, in ``dtype``."""
    scaled = data * torch.rsqrt(data.square().mean(-1, keepdim=True) + arguments["epsilon"])
    if arguments.get("use_model_sensitive_rmsnorm", 0):
        scaled = narrowed(
            scaled, dtype, double.arch, "norm"
        ).float()  # the rounding of transformers: back to the input dtype before the weight
    weight = arguments["weight"].float()
    weighted = scaled * (weight + 1.0 if arguments.get("gemma_norm", False) else weight)
    return narrowed(weighted, dtype, double.arch, "norm")


def rms_norm(double: Double, name: str, arguments: dict[str, Any]) -> Tensor:
    """Returns a new tensor (``rms_norm``, ``rmsnorm2d_fwd``)."""
    _check(double, name, arguments)
    return _normalise(double, arguments["input"].float(), arguments, arguments["input"].dtype)


def rms_norm_out(double: Double, name: str, arguments: dict[str, Any]) -> None:
    """Writes ``out`` (``rms_norm_cu``, ``rmsnorm``)."""
    _check(double, name, arguments)
    arguments["out"].copy_(_normalise(double, arguments["input"].float(), arguments, arguments["input"].dtype))


def add_rms_norm(double: Double, name: str, arguments: dict[str, Any]) -> None:
    """``residual_out = input + residual_in; out = norm(residual_out)``."""
    _check(double, name, arguments)
    out, residual_out = arguments["out"], arguments["residual_out"]
    double.require(out.data_ptr() != residual_out.data_ptr(), f"{name}: out and residual_out are the same memory")
    total = arguments["input"].float() + arguments["residual_in"].float()
    result = _normalise(double, total, arguments, out.dtype)
    residual_out.copy_(narrowed(total, residual_out.dtype, double.arch, "norm"))
    out.copy_(result)


def add_rms_norm_in_place(double: Double, name: str, arguments: dict[str, Any]) -> None:
    """``residual_in += input; input = norm(residual_in)`` (``fused_add_rms_norm_cu``)."""
    _check(double, name, arguments)
    data, residual = arguments["input"], arguments["residual_in"]
    double.require(data.data_ptr() != residual.data_ptr(), f"{name}: input and residual_in are the same memory")
    total = data.float() + residual.float()
    data.copy_(_normalise(double, total, arguments, data.dtype))
    residual.copy_(narrowed(total, residual.dtype, double.arch, "norm"))
