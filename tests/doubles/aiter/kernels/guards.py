"""Preconditions that every kernel of the double shares."""

from __future__ import annotations

from typing import Any

import torch

from ..state import ASM_ARCHES, Double

HALF = (torch.bfloat16, torch.float16)


def tensors(arguments: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: item for name, item in arguments.items() if isinstance(item, torch.Tensor)}


def launch(double: Double, name: str, arguments: dict[str, Any]) -> None:
    """What holds for every kernel: the right machine, one device, no autograd."""
    double.require(
        double.arch in ASM_ARCHES,
        f"{name}: launched on {double.arch}, which has no such kernel (arches: {', '.join(ASM_ARCHES)})",
    )
    on_the_gpu(double, name, arguments)


def on_the_gpu(double: Double, name: str, arguments: dict[str, Any]) -> None:
    """The GPU's own tensors, and no autograd."""
    given = tensors(arguments)
    for argument, tensor in given.items():
        double.require(
            tensor.device.type == double.device_type,
            f"{name}: {argument} lives on {tensor.device.type}, the GPU is {double.device_type}: "
            "the dispatcher has a CPU key, so this would hand a host pointer to a HIP kernel",
        )
    wanting = [argument for argument, tensor in given.items() if tensor.requires_grad]
    double.require(
        not (torch.is_grad_enabled() and wanting),
        f"{name}: grad is needed for {', '.join(wanting)} but the op has no autograd kernel",
    )


def half(double: Double, name: str, **given: torch.Tensor) -> None:
    """fp16 or bf16, and the same for all."""
    for argument, tensor in given.items():
        double.require(tensor.dtype in HALF, f"{name}: {argument} is {tensor.dtype}; fp16 or bf16 only")
    same_dtype(double, name, **given)


def same_dtype(double: Double, name: str, **given: torch.Tensor) -> None:
    found = {argument: tensor.dtype for argument, tensor in given.items()}
    double.require(len(set(found.values())) <= 1, f"{name}: dtypes differ: {found}")


def contiguous(double: Double, name: str, **given: torch.Tensor) -> None:
    for argument, tensor in given.items():
        double.require(
            tensor.is_contiguous(),
            f"{name}: {argument} is not contiguous (strides {tuple(tensor.stride())}); the kernel never reads strides",
        )


def shape(double: Double, name: str, argument: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    double.require(
        tuple(tensor.shape) == expected, f"{name}: {argument} has shape {tuple(tensor.shape)}, expected {expected}"
    )


def not_empty(double: Double, name: str, **given: torch.Tensor) -> None:
    for argument, tensor in given.items():
        double.require(tensor.numel() > 0, f"{name}: {argument} is empty; no launch of zero blocks is specified")


def unused(double: Double, name: str, **given: Any) -> None:
    """Arguments that real aiter has and the double does not model must stay at their defaults."""
    for argument, value in given.items():
        double.require(value is None, f"{name}: {argument} is not modelled by the double")
