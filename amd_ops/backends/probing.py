"""What every foreign kernel must pass: preconditions on its tensors, and a comparison with the eager formula on
made-up data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..dispatch import EMPTY

_PLAIN = (Tensor, nn.Parameter)


def unusable(kind: str, *tensors: Tensor) -> str:
    """Preconditions that hold for every op here; a CPU dispatch key exists, so nothing else would catch a wrong
    device.
    """
    reason = misplaced(kind, *tensors)
    if reason:
        return reason
    if needs_grad(*tensors):
        return "a gradient is needed and aiter's op has no backward"
    if torch.is_autocast_enabled(kind):
        return "autocast is on"
    return ""


def misplaced(kind: str, *tensors: Tensor) -> str:
    """Say what is wrong with the type, place or size of a kernel's tensors, in the order that the cheapest test allows."""
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            return f"{type(tensor).__name__} is not a plain tensor"
        if tensor.device.type != kind:
            return f"a tensor is on {tensor.device.type}, the GPU's are on {kind}"
        if tensor.numel() == 0:
            return EMPTY
    return ""


def needs_grad(*tensors: Tensor) -> bool:
    """Return whether autograd would record an op on these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def made_up(shape: tuple[int, ...], dtype: torch.dtype, where: torch.device, seed: int) -> Tensor:
    """Deterministic data of about unit size that disturbs no random generator."""
    count = math.prod(shape)
    ramp = torch.arange(count, device=where, dtype=torch.float32)
    return (torch.sin(ramp * 0.7371 + seed) + 0.5 * torch.cos(ramp * 0.1133 * (seed + 1))).view(shape).to(dtype)


def disagreement(got: Tensor, want: Tensor) -> str:
    """Compare a kernel's answer with the eager one: 1 % in the mean, and no element off by more than a few
    roundings.
    """
    if got.shape != want.shape:
        return f"its probe returned {list(got.shape)}, expected {list(want.shape)}"
    tolerance = 0.01 if got.dtype is torch.bfloat16 else 0.002
    got, want = got.float(), want.float()
    size, peak = want.norm(), want.abs().max()
    error, worst = (got - want).norm() / size, (got - want).abs().max() / peak
    if bool(error <= tolerance) and bool(worst <= 4 * tolerance):
        return ""
    return f"its probe disagrees with the eager formula by {float(error):.1%} in the mean, {float(worst):.1%} at worst"


def apart(compare: Callable[..., str]) -> Callable[..., str]:
    """Run a comparison apart from the caller's modes."""

    @functools.wraps(compare)
    def run(*args: Any) -> str:
        with torch.inference_mode():
            return compare(*args)

    return run
