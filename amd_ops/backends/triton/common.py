"""What the three families of kernels share on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..probing import misplaced
from .layout import unreachable
from .target import Target

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def unfit(target: Target, *tensors: Tensor) -> str:
    """Preconditions of every kernel here, "" when they hold. Gradients are the family's own question, and autocast is
    none: it leaves every function alone that stock's norms, gated activations and rotations are made of.
    """
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"{tensor.dtype} is not fp32, fp16 or bf16"
    return misplaced(target.type, *tensors) or unreachable(*tensors)


def apply(function: Any, *args: Any) -> Any:
    """Run an autograd function (torch gives ``apply`` no types)."""
    return function.apply(*args)
