"""What every foreign kernel must pass: preconditions on its tensors, and a comparison with the eager formula on
made-up data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import modes
from ..dispatch import EMPTY
from ..tolerances import KERNEL_PROBE, PROBE_WORST, tolerance

_PLAIN = (Tensor, nn.Parameter)
NO_BACKWARD = "a gradient is needed and aiter's op has no backward"


def unusable(kind: str, *tensors: Tensor) -> str:
    """Preconditions that hold for every op here; a CPU dispatch key exists, so nothing else would catch a wrong
    device.
    """
    reason = misplaced(kind, *tensors)
    if reason:
        return reason
    if needs_grad(*tensors):
        return NO_BACKWARD
    if torch.is_autocast_enabled(kind):
        return "autocast is on"
    return ""


def misplaced(kind: str, *tensors: Tensor) -> str:
    """Say what is wrong with the type, place or size of a kernel's tensors, or with the mode that the call is made in;
    "" when nothing is.
    """
    for tensor in tensors:
        if type(tensor) not in _PLAIN:
            return f"{type(tensor).__name__} is not a plain tensor"
        if tensor.device.type != kind:
            return f"a tensor is on {tensor.device.type}, the GPU's are on {kind}"
        if tensor.numel() == 0:
            return EMPTY
    return modes.hidden()


def needs_grad(*tensors: Tensor) -> bool:
    """Return whether autograd would record an op on these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def made_up(shape: tuple[int, ...], dtype: torch.dtype, where: torch.device, seed: int) -> Tensor:
    """Deterministic data of about unit size that disturbs no random generator."""
    count = math.prod(shape)
    ramp = torch.arange(count, device=where, dtype=torch.float32)
    return (torch.sin(ramp * 0.7371 + seed) + 0.5 * torch.cos(ramp * 0.1133 * (seed + 1))).view(shape).to(dtype)


def noise(shape: tuple[int, ...], dtype: torch.dtype, where: torch.device, seed: int) -> Tensor:
    """Deterministic data of unit size without any order, as gradients want it: waves cancel where they are summed, and
    what is left is rounding.
    """
    number = torch.arange(math.prod(shape), device=where) + (seed << 24)
    for _ in range(2):
        number = ((number >> 16) ^ number) * 0x45D9F3B & 0xFFFFFFFF
    number = (number >> 16) ^ number
    return ((number.float() / 2**32 - 0.5) * math.sqrt(12.0)).view(shape).to(dtype)


def disagreement(got: Tensor, want: Tensor, inputs: Sequence[Tensor] = ()) -> str:
    """Compare a kernel's answer with the eager one in fp32: about 1 % in the mean, and no element off by more than a
    few roundings.

    In bfloat16 a kernel may round twice, and on gfx94x aiter's cut: each cut takes 2.7e-3 away in the mean and 7.8e-3
    at most, two have a root mean square of 6e-3. The limit is twice that; 3 % off everywhere is a wrong kernel. An
    fp32 result of bfloat16 ``inputs`` holds such roundings, too.
    """
    if got.shape != want.shape:
        return f"its probe returned {list(got.shape)}, expected {list(want.shape)}"
    rounded = any(x.dtype is torch.bfloat16 for x in (got, *inputs))
    name = "bfloat16" if rounded else str(got.dtype).removeprefix("torch.")
    allowed = tolerance(KERNEL_PROBE, name).relative
    got, want = got.float(), want.float()
    size, peak = want.norm(), want.abs().max()
    error, worst = (got - want).norm() / size, (got - want).abs().max() / peak
    if bool(error <= allowed) and bool(worst <= PROBE_WORST * allowed):
        return ""
    return f"its probe disagrees with the eager formula by {float(error):.1%} in the mean, {float(worst):.1%} at worst"


def apart(compare: Callable[..., str]) -> Callable[..., str]:
    """Run a comparison apart from the caller's modes."""

    @functools.wraps(compare)
    def run(*args: Any) -> str:
        with torch.inference_mode():
            return compare(*args)

    return run


def prove(
    run: Callable[..., Any], reference: Callable[..., Any], tensors: Sequence[Tensor], rest: tuple[Any, ...]
) -> str:
    """Compare ``run(*tensors, *rest)`` with the reference in fp32; where a tensor needs a gradient, those too."""
    graded = any(tensor.requires_grad for tensor in tensors)
    with torch.inference_mode(False), torch.set_grad_enabled(graded):
        exact = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in tensors]
        got, want = _list(run(*tensors, *rest)), _list(reference(*exact, *rest))
        for ours, theirs in zip(got, want, strict=True):
            reason = disagreement(ours.detach(), theirs.detach(), tensors)
            if reason:
                return reason
        if not graded:
            return ""
        seeds = [noise(tuple(t.shape), t.dtype, t.device, seed) for seed, t in enumerate(got, 20)]
        torch.autograd.backward(got, seeds)
        torch.autograd.backward(want, [seed.to(t.dtype) for seed, t in zip(seeds, want, strict=True)])
        for tensor, plain in zip(tensors, exact, strict=True):
            if not tensor.requires_grad:
                continue
            if tensor.grad is None or plain.grad is None:
                return "backward: its probe left out a gradient"
            reason = disagreement(tensor.grad, plain.grad, tensors)
            if reason:
                return f"backward: {reason}"
    return ""


def wanting(made: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Let made-up tensors need the gradients that those of the call need."""
    grads = needs_grad(*like)
    return [m.requires_grad_() if grads and t.requires_grad else m for m, t in zip(made, like, strict=True)]


def _list(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]
