"""Argument errors: the name, the value received, the value expected."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.checkpoint

TORCH_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""What torch raises on unusable arguments. Ops diagnose such an error after the fact, so that good calls pay
nothing.
"""

OutOfMemoryError: type[BaseException] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
"""A probe that runs out of memory proves nothing about its kernel (torch 2.4 has the error under torch.cuda alone)."""
_stop: Any = getattr(torch.utils.checkpoint, "_StopRecomputationError", OutOfMemoryError)
PASSED_ON: tuple[type[BaseException], ...] = (OutOfMemoryError, _stop)
"""Errors that say nothing about the kernel in which they come up: no memory, and activation checkpointing, which ends a
recomputation in the middle of an op once it has what it needs.
"""


class ArgumentError(ValueError):
    """An argument of an op is not usable. The text names the argument, what was got and what was expected.

    Examples:
        >>> amd_ops.silu_and_mul(torch.zeros(3))
        Traceback (most recent call last):
        amd_ops.checks.ArgumentError: ...
    """


def complaint(op: str, argument: str, got: object, expected: str) -> ArgumentError:
    """Build the error for one argument."""
    return ArgumentError(f"{op}: {argument} is {got}, expected {expected}.")


def describe(tensor: object) -> str:
    """Shape, dtype and device of a tensor, or the type of whatever else was passed."""
    if not isinstance(tensor, torch.Tensor):
        return type(tensor).__name__
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def same_place(op: str, **tensors: object) -> None:
    """Raise unless all tensors (None is skipped) are tensors on one device and of one dtype; the first one is the
    measure.
    """
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise complaint(op, name, describe(tensor), "a tensor")
        assert isinstance(first, torch.Tensor)
        if tensor.device != first.device:
            raise complaint(op, name, f"on {tensor.device}", f"{first.device}, where {first_name} is")
        if tensor.dtype != first.dtype:
            raise complaint(op, name, str(tensor.dtype), f"{first.dtype}, as {first_name}")
