"""What the three families of kernels share on the host: preconditions, and the comparison that proves a variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..probing import disagreement, misplaced, needs_grad
from .layout import unreachable
from .target import Target

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_transforms: Callable[[], Any] = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)


def unfit(target: Target, *tensors: Tensor) -> str:
    """Preconditions of every kernel here, "" when they hold. Gradients are the family's own question."""
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"{tensor.dtype} is not fp32, fp16 or bf16"
    reason = misplaced(target.type, *tensors)
    if reason:
        return reason
    if torch.is_autocast_enabled(target.type):
        return "autocast is on"
    if getattr(forward_ad, "_current_level", -1) >= 0 or _transforms() is not None:
        return "forward-mode gradients or a functorch transform is active"
    return unreachable(*tensors)


def prove(
    run: Callable[..., Any], reference: Callable[..., Any], tensors: Sequence[Tensor], rest: tuple[Any, ...]
) -> str:
    """Compare ``run(*tensors, *rest)`` with the reference in fp32; where a tensor needs a gradient, those too."""
    graded = any(tensor.requires_grad for tensor in tensors)
    with torch.inference_mode(False), torch.set_grad_enabled(graded):
        exact = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in tensors]
        got, want = _list(run(*tensors, *rest)), _list(reference(*exact, *rest))
        for ours, theirs in zip(got, want, strict=True):
            reason = disagreement(ours.detach(), theirs.detach())
            if reason:
                return reason
        if not graded:
            return ""
        seeds = [torch.cos(torch.arange(t.numel(), device=t.device, dtype=torch.float32)).view(t.shape) for t in want]
        torch.autograd.backward(got, [seed.to(t.dtype) for seed, t in zip(seeds, got, strict=True)])
        torch.autograd.backward(want, seeds)
        for tensor, plain in zip(tensors, exact, strict=True):
            if tensor.requires_grad and tensor.grad is not None and plain.grad is not None:
                reason = disagreement(tensor.grad, plain.grad)
                if reason:
                    return f"backward: {reason}"
    return ""


def wanting(made: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Let made-up tensors need the gradients that those of the call need."""
    grads = needs_grad(*like)
    return [m.requires_grad_() if grads and t.requires_grad else m for m, t in zip(made, like, strict=True)]


def apply(function: Any, *args: Any) -> Any:
    """Run an autograd function (torch gives ``apply`` no types)."""
    return function.apply(*args)


def _list(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]
