"""A loss from hidden states by blocks of the vocabulary: the node of every tier, which brings what is done to a block.

The forward keeps one number per row, log sum exp of its logits. The backward computes every block again: one product
more than stock, and in exchange the weight's gradient is rounded once, as in stock, the scale of a GradScaler is
there before anything is rounded to fp16, a graph may be run twice, and torch's own checks see every tensor that is used
(cut cross entropy, Wijmans et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 4096
"""Rows of the head that are looked at together, at least; with a wider hidden state as many as that is wide."""


class Form(NamedTuple):
    """What happens to the logits x @ weight.T + bias, in this order, before the loss: None where nothing does."""

    divisor: float | None = None
    factor: float | None = None
    softcap: float | None = None


class Steps(NamedTuple):
    """What is done with the product [T, N] of one block, whose first column is word ``first``; it is used up."""

    add: Callable[[Tensor, Tensor, int, Tensor, Tensor, Form], None]
    """(product, labels, first, total, target, form): log sum exp of the block goes into ``total``, the logit of each
    row's label, if it is here, into ``target``; both are fp32 [T]."""
    gradient: Callable[[Tensor, Tensor, int, Tensor, Tensor, Form], Tensor]
    """(product, labels, first, total, dy, form): the gradient of sum(dy * losses), in the product's dtype."""


class Blocked(torch.autograd.Function):
    """The node; its second derivative is that of the formula."""

    @classmethod
    def of(cls, steps: Steps, formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return losses(x, weight, bias, labels, ignore_index, form) -> fp32 [T]."""

        def losses(x: Tensor, *rest: Any) -> Tensor:
            made: Tensor = cls.apply(x.to(cast(x) or x.dtype), *rest, steps, formula)  # type: ignore[no-untyped-call]
            return made

        return losses

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        ignore_index: int,
        form: Form,
        steps: Steps,
        formula: Callable[..., Tensor],
    ) -> Tensor:
        total = x.new_full(labels.shape, -torch.inf, dtype=torch.float32)
        target = torch.zeros_like(total)
        for first, _, rows, part in _blocks(weight, bias, x):
            steps.add(F.linear(x, rows, part), labels, first, total, target, form)
        ctx.save_for_backward(x, weight, bias, labels, total)
        ctx.rest = ignore_index, form, steps, formula
        return torch.where(labels == ignore_index, 0.0, total - target)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, labels, total = ctx.saved_tensors
        ignore_index, form, steps, formula = ctx.rest
        wants = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a second derivative is wanted: stock's statements have one
            losses = formula(x, weight, bias, labels, ignore_index, form)
            inputs = [one for one, want in zip((x, weight, bias), wants, strict=True) if want]
            found = iter(torch.autograd.grad(losses, inputs, dy, create_graph=True))
            return *(next(found) if want else None for want in wants), *(None,) * 5
        dy = torch.where(labels == ignore_index, 0.0, dy)
        dx = torch.zeros_like(x, dtype=torch.float32) if wants[0] else None
        dw = torch.empty_like(weight) if wants[1] else None
        db = torch.empty_like(bias) if bias is not None and wants[2] else None
        for first, last, rows, part in _blocks(weight, bias, x):
            grads = steps.gradient(F.linear(x, rows, part), labels, first, total, dy, form)
            if dx is not None:
                dx += torch.mm(grads, rows)
            if dw is not None:
                dw[first:last] = torch.mm(grads.t(), x)
            if db is not None:
                db[first:last] = grads.sum(0)
        return None if dx is None else dx.to(x.dtype), dw, db, *(None,) * 5


def _blocks(weight: Tensor, bias: Tensor | None, like: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """Yield (first word, one behind the last, rows of the weight, of the bias), in the dtype of ``like``."""
    size = max(COLUMNS, weight.shape[1])
    for first in range(0, weight.shape[0], size):
        last = min(first + size, weight.shape[0])
        part = None if bias is None else bias[first:last].to(like.dtype)
        yield first, last, weight[first:last].to(like.dtype), part


def cast(x: Tensor) -> torch.dtype | None:
    """Return the dtype to which autocast casts the operands of the head's product; None where it does not."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype is not torch.float64:
        return torch.get_autocast_dtype(device)
    return None


def within(labels: Tensor, weight: Tensor, ignore_index: int) -> None:
    """Refuse labels outside of the vocabulary as stock does: an error on the CPU, an assertion in a kernel on a GPU."""
    index = torch.where(labels == ignore_index, 0, labels)
    if labels.device.type != "cpu":
        weight.detach().select(1, 0).gather(0, index)  # nothing is waited for: the kernel asserts
        return
    outside = (index < 0) | (index >= weight.shape[0])
    if outside.any():
        raise IndexError(f"Target {int(labels[outside][0])} is out of bounds.")
