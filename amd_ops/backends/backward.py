"""A backward that is made of kernels cannot be differentiated again. What asks for that gets an error that says so.

torch's own ``once_differentiable`` looks only at the incoming gradient: where that is a constant, the second derivative
through what the forward kept is left out without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., tuple[Tensor | None, ...]]


class SecondDerivativeError(RuntimeError):
    """A gradient was differentiated again (create_graph=True) whose kernel has no backward of its own."""


class _Refusal(torch.autograd.Function):
    """The identity on gradients; whoever differentiates them is told."""

    @staticmethod
    def forward(ctx: Any, whose: str, *gradients: Tensor) -> tuple[Tensor, ...]:
        ctx.whose = whose
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *again: Tensor) -> tuple[Tensor, ...]:
        raise SecondDerivativeError(
            f"{ctx.whose}: the kernel of this gradient has no backward, and it was differentiated again "
            "(create_graph=True). AMD_OPS_TIERS=torch,eager computes it with torch's own formulas, which have one."
        )


def final(whose: str, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients as they are; under create_graph=True as ones that cannot be differentiated silently."""
    if not torch.is_grad_enabled():
        return gradients
    there = [gradient.detach().requires_grad_() for gradient in gradients if gradient is not None]
    marked = iter(_Refusal.apply(whose, *there)) if there else iter(())  # type: ignore[no-untyped-call]
    return tuple(None if gradient is None else next(marked) for gradient in gradients)


def once(whose: str) -> Callable[[Backward], Backward]:
    """Decorate the backward of an autograd function whose gradients cannot be differentiated again."""

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def run(ctx: Any, *args: Any) -> tuple[Tensor | None, ...]:
            with torch.no_grad():
                gradients = backward(ctx, *args)
            return final(whose, *gradients)

        return run

    return decorate
