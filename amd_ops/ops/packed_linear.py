"""q/k/v and gate/up in one GEMM where gradients are wanted, and inside torch.compile.

Backward there is one GEMM for the gradient of the input and one for those of all weights, whose rows are the
parameters' own gradients: every parameter is an input of the node, so hooks, accumulation and DDP see what they see
in stock. The parameters are saved beside the matrix, so that torch notices a write to one of them before the backward.

In a graph that is ``amd_ops::packed_linear(x, weights, biases)``. A graph holds the parameters themselves, and the
addresses of the weights that the op is given decide. So nothing can be stale and no guard is needed: a parameter that
moved, was replaced or merged is another input. Where they lie apart there is one GEMM for each, into slices of one
result. Weights come together in the first eager forward (a prefill) or by ``prepare(model)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import toggles
from ..dispatch import Site
from ..modules import why_not_plain
from ..torch_compile import define
from ..weights import packing
from .linear import linear
from .linear import op as linear_op

_site = Site("packed_linear", "one GEMM", lambda settings: False)


def product(x: Tensor, parameters: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Return [..., sum of N] for x [..., K], differentiably: ``parameters`` are weights [N, K] and then biases, if any,
    and all of either lie in one matrix. ``sizes`` are the N.

    Under autocast x, weights and result have its dtype, the gradients of the weights their own, as in stock.
    """
    device, dtype = x.device.type, None
    if torch.is_autocast_enabled(device) and x.dtype is not torch.float64:  # which autocast leaves alone
        dtype = torch.get_autocast_dtype(device)
        x = x.to(dtype)
    made: Tensor = _Joint.apply(x, tuple(sizes), dtype, *parameters)  # type: ignore[no-untyped-call]
    return made


class _Joint(torch.autograd.Function):
    """The node of ``product``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: tuple[int, ...], dtype: torch.dtype | None, *parameters: Tensor) -> Tensor:
        count = len(sizes)
        weights, biases = parameters[:count], parameters[count:]
        ctx.sizes, ctx.of_x, ctx.of_weights = sizes, ctx.needs_input_grad[0], any(ctx.needs_input_grad[3 : 3 + count])
        # As stock does: x for the weights' gradients, the weights for that of x.
        ctx.save_for_backward(*([x] if ctx.of_weights else []), *(weights if ctx.of_x else []))
        ctx.own = weights[0].dtype
        whole: Any = packing.matrix_of(weights)
        bias = packing.matrix_of(biases) if biases else None
        # The memory that the forward has read, whatever becomes of the parameters: stock's graph keeps that, too.
        ctx.whole = whole if ctx.of_x else None
        if dtype is not None:
            whole, bias = whole.to(dtype), None if bias is None else bias.to(dtype)
        return linear(x, whole, bias) if toggles.on.linear else F.linear(x, whole, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved, count, wants = ctx.saved_tensors, len(ctx.sizes), ctx.needs_input_grad[3:]
        x, weights = (saved[0], saved[1:]) if ctx.of_weights else (None, saved)
        dx = input_gradient(dy, weights, ctx.whole) if ctx.of_x else None
        parts = gradients(dy, x, ctx.sizes, wants[:count], ctx.own)
        if len(wants) > count:
            parts += gradients(dy, None, ctx.sizes, wants[count:], ctx.own)
        return (dx, None, None, *parts)


def input_gradient(dy: Tensor, weights: Sequence[Tensor], whole: Tensor | None = None) -> Tensor:
    """Return dy [..., sum of N] @ the weights [N, K] below one another: [..., K], in one GEMM where they are rows of
    one matrix. Differentiable where gradients are enabled (a second derivative).
    """
    if not torch.is_grad_enabled():
        whole = packing.matrix_of(weights) if whole is None else whole
        if whole is not None:
            return torch.matmul(dy, whole.to(dy.dtype))
    parts = dy.split_with_sizes([weight.shape[0] for weight in weights], -1)
    total = torch.matmul(parts[0], weights[0].to(dy.dtype))
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total = total + torch.matmul(part, weight.to(dy.dtype))
    return total


def gradients(
    dy: Tensor, x: Tensor | None, sizes: Sequence[int], wants: Sequence[bool], dtype: torch.dtype
) -> list[Tensor | None]:
    """Return the gradient of every weight that ``wants`` one, else None: rows of dy.T @ x, one GEMM for every run of
    weights that want one. Without x those of the biases.
    """
    rows = dy.reshape(-1, dy.shape[-1])
    found: list[Tensor | None] = [None] * len(sizes)
    for first, last in _runs(wants):
        begin, size = sum(sizes[:first]), sum(sizes[first:last])
        part = rows if size == rows.shape[1] else rows.narrow(1, begin, size)
        made = part.sum(0) if x is None else torch.mm(part.t(), x.reshape(-1, x.shape[-1]))
        # Not views for autograd: each becomes a parameter's .grad, which anybody may write to.
        found[first:last] = made.to(dtype).unsafe_split_with_sizes(list(sizes[first:last]))
    return found


def _runs(wants: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Yield (first, one behind the last) of every run of True."""
    first = None
    for index, want in enumerate((*wants, False)):
        if want and first is None:
            first = index
        elif not want and first is not None:
            yield first, index
            first = None


def joint(owner: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor | None:
    """Return the products of x [..., K] with owner's Linears ``names`` inside a trace, beside one another.

    None where the Linears must be called themselves: one is not plain or watched, or autocast takes part.
    """
    if not toggles.on.packed or torch.is_autocast_enabled(x.device.type):
        return None
    linears: list[Any] = [owner.get_submodule(name) for name in names]
    if any(why_not_plain(one) for one in linears):
        return None
    weights: list[Tensor] = [one.weight for one in linears]
    biases: list[Tensor] = [one.bias for one in linears if one.bias is not None]
    if biases and len(biases) != len(weights):
        return None
    if any(part.dtype is not x.dtype for part in (*weights, *biases)):
        return None
    if any(weight.shape[1] != weights[0].shape[1] for weight in weights):
        return None
    _define()
    both: Tensor = torch.ops.amd_ops.packed_linear(x, weights, biases)
    return both


def run(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Return [..., sum of N] for x [..., K] and weights [N, K]: what the op does outside of a trace."""
    whole = packing.matrix_of(weights)
    if whole is not None:
        bias = packing.matrix_of(biases) if biases else None
        if biases and bias is None:
            bias = torch.cat(biases)
        _site.fast.calls += 1
        if toggles.on.linear:
            linear_op.calls += 1
            out: Tensor = linear_op.call(x, whole, bias)
            return out
        return F.linear(x, whole, bias)
    _site.declined("the weights are not rows of one matrix (no eager forward and no prepare() has packed them)")
    rows = x.reshape(-1, x.shape[-1])
    sizes = [weight.shape[0] for weight in weights]
    out = x.new_empty((rows.shape[0], sum(sizes)))
    for index, (weight, part) in enumerate(zip(weights, out.split_with_sizes(sizes, 1), strict=True)):
        if biases:
            torch.addmm(biases[index], rows, weight.t(), out=part)
        else:
            torch.mm(rows, weight.t(), out=part)
    return out.view(*x.shape[:-1], out.shape[1])


def _like(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return x.new_empty((*x.shape[:-1], sum(weight.shape[0] for weight in weights)))


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, biases = inputs
    ctx.sizes = [weight.shape[0] for weight in weights]
    # Asked here: of a list of tensors, ctx.needs_input_grad says one thing in the forward and another in the backward.
    ctx.of_x, ctx.wants = x.requires_grad, [[one.requires_grad for one in parts] for parts in (weights, biases)]
    ctx.of_weights = any(ctx.wants[0])
    ctx.save_for_backward(*([x] if ctx.of_weights else []), *(weights if ctx.of_x else []))


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    saved, (of_weights, of_biases) = ctx.saved_tensors, ctx.wants
    x, weights = (saved[0], list(saved[1:])) if ctx.of_weights else (None, list(saved))
    dx = torch.ops.amd_ops.packed_linear_input_gradient(dy, weights) if ctx.of_x else None
    dws = gradients(dy, x, ctx.sizes, of_weights, dy.dtype)
    return dx, dws, gradients(dy, None, ctx.sizes, of_biases, dy.dtype) if of_biases else []


def _define() -> bool:
    """Register the ops once; run outside the trace, where it is a constant."""
    define(
        "packed_linear_input_gradient",
        "(Tensor dy, Tensor[] weights) -> Tensor",
        input_gradient,
        lambda dy, weights: dy.new_empty((*dy.shape[:-1], weights[0].shape[1])),
    )
    define(
        "packed_linear",
        "(Tensor x, Tensor[] weights, Tensor[] biases) -> Tensor",
        run,
        _like,
        (_differentiate, _remember),
    )
    return True


_define._dynamo_marked_constant = True  # type: ignore[attr-defined]
