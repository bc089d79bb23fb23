"""The loss of a causal language model from its hidden states: the head's product and the cross entropy, one block of
the vocabulary at a time, so that the logits never exist as a whole.

The forward keeps one number per row, log sum exp of its logits. The backward computes every block again: one product
more than stock, and in exchange the weight's gradient is rounded once, as in stock, the scale of a GradScaler is
there before anything is rounded to fp16, a graph may be run twice, and torch's own checks see every tensor that is used
(cut cross entropy, Wijmans et al. 2024). torch's F.linear_cross_entropy makes gradients in its forward and knows
neither scales nor soft caps of logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import modes, modules
from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import Site, always
from .tiers import make_op

COLUMNS = 4096
"""Rows of the head that are looked at together, at least; with a wider hidden state as many as that is wide."""
HOME = "transformers.loss.loss_utils"
"""Where the loss lives that may be replaced; the function there is asked for, not its name."""

_compiling = torch.compiler.is_dynamo_compiling
_site = Site("causal_lm_loss", "fused", lambda settings: settings.asked("USE_FUSED_CROSS_ENTROPY"))


class Form(NamedTuple):
    """What happens to the logits x @ weight.T + bias, in this order, before the loss: None where nothing does."""

    divisor: float | None = None
    factor: float | None = None
    softcap: float | None = None


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> tuple[Tensor, Tensor | None]:
    """Stock's statements, each rounded as there, and its cast to fp32; beside them what the soft cap's tanh gave."""
    logits, tanh = F.linear(x, weight, bias), None
    if form.divisor is not None:
        logits = logits / form.divisor
    if form.factor is not None:
        logits = logits * form.factor
    if form.softcap is not None:
        tanh = torch.tanh(logits / form.softcap)
        logits = tanh * form.softcap
    return logits.float(), tanh


def _blocks(weight: Tensor, bias: Tensor | None, like: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """Yield (first column, one behind the last, rows of the weight, of the bias), in the dtype of ``like``."""
    size = max(COLUMNS, weight.shape[1])
    for first in range(0, weight.shape[0], size):
        last = min(first + size, weight.shape[0])
        part = None if bias is None else bias[first:last].to(like.dtype)
        yield first, last, weight[first:last].to(like.dtype), part


def _labelled(labels: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return (whether each row's label is in this block, its column in it) as [T] and [T, 1]."""
    inside = (labels >= first) & (labels < last)
    return inside, (labels - first).clamp(0, last - first - 1)[:, None]


class _Blocked(torch.autograd.Function):
    """The node of the torch tier."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, form: Form
    ) -> Tensor:
        total = x.new_full(labels.shape, -torch.inf, dtype=torch.float32)
        target = torch.zeros_like(total)
        for first, last, rows, part in _blocks(weight, bias, x):
            logits, _ = _logits(x, rows, part, form)
            inside, column = _labelled(labels, first, last)
            target += torch.where(inside, logits.gather(1, column)[:, 0], 0.0)
            total = torch.logaddexp(total, torch.logsumexp(logits, 1))
        ctx.save_for_backward(x, weight, bias, labels, total)
        ctx.ignore_index, ctx.form = ignore_index, form
        return torch.where(labels == ignore_index, 0.0, total - target)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, labels, total = ctx.saved_tensors
        wants = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a second derivative is wanted: stock's statements have one
            losses = eager_linear_cross_entropy(x, weight, bias, labels, ctx.ignore_index, ctx.form)
            inputs = [one for one, want in zip((x, weight, bias), wants, strict=True) if want]
            found = iter(torch.autograd.grad(losses, inputs, dy, create_graph=True))
            return (*(next(found) if want else None for want in wants), None, None, None)
        dy = torch.where(labels == ctx.ignore_index, 0.0, dy)[:, None]
        dx = torch.zeros_like(x, dtype=torch.float32) if wants[0] else None
        dw = torch.empty_like(weight) if wants[1] else None
        db = torch.empty_like(bias) if bias is not None and wants[2] else None
        for first, last, rows, part in _blocks(weight, bias, x):
            logits, tanh = _logits(x, rows, part, ctx.form)
            grads = _softmax_gradient(logits, total, labels, first, last).mul_(dy)
            grads = _through(grads, tanh, ctx.form).to(x.dtype)
            if dx is not None:
                dx += torch.mm(grads, rows)
            if dw is not None:
                dw[first:last] = torch.mm(grads.t(), x)
            if db is not None:
                db[first:last] = grads.sum(0)
        return None if dx is None else dx.to(x.dtype), dw, db, None, None, None


def _softmax_gradient(logits: Tensor, total: Tensor, labels: Tensor, first: int, last: int) -> Tensor:
    """Turn one block's logits, which are used up, into softmax minus the label's one."""
    grads = logits.sub_(total[:, None]).exp_()
    inside, column = _labelled(labels, first, last)
    return grads.scatter_add_(1, column, -inside.to(grads.dtype)[:, None])


def _through(grads: Tensor, tanh: Tensor | None, form: Form) -> Tensor:
    """Carry a gradient, in place, back through the soft cap and the scales."""
    if tanh is not None:
        grads.mul_(1.0 - tanh.float().square_())
    if form.factor is not None:
        grads.mul_(form.factor)
    if form.divisor is not None:
        grads.div_(form.divisor)
    return grads


def torch_linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, form: Form
) -> Tensor:
    """By blocks of the vocabulary. A label outside of it is torch's IndexError on the CPU, an assertion on a GPU."""
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or labels.shape != x.shape[:1]:
        raise ValueError("shapes do not fit")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError("the bias does not fit")
    _within(labels, weight, ignore_index)
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype is not torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    elif x.dtype is not weight.dtype:
        raise ValueError("dtypes differ")
    losses: Tensor = _Blocked.apply(x, weight, bias, labels, ignore_index, form)  # type: ignore[no-untyped-call]
    return losses


def _within(labels: Tensor, weight: Tensor, ignore_index: int) -> None:
    """Refuse labels outside of the vocabulary as stock does: an error on the CPU, an assertion in a kernel on a GPU."""
    index = torch.where(labels == ignore_index, 0, labels)
    if labels.device.type != "cpu":
        weight.detach().select(1, 0).gather(0, index)  # nothing is waited for: the kernel asserts
        return
    outside = (index < 0) | (index >= weight.shape[0])
    if outside.any():
        raise IndexError(f"Target {int(labels[outside][0])} is out of bounds.")


def eager_linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, form: Form
) -> Tensor:
    """Stock's statements: the whole logits in fp32."""
    return F.cross_entropy(_logits(x, weight, bias, form)[0], labels, ignore_index=ignore_index, reduction="none")


_op = make_op(
    "linear_cross_entropy",
    "USE_FUSED_CROSS_ENTROPY",
    torch=always(torch_linear_cross_entropy),
    eager=eager_linear_cross_entropy,
)


@_op.public
def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    divisor: float | None = None,
    factor: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return cross_entropy(x @ weight.T + bias, labels) of every row, fp32 [T], 0 where the label is ``ignore_index``.

    x [T, H] and weight [V, H] of one dtype (under autocast of any), bias [V] or None, labels [T] int64 in 0..V-1. The
    logits are divided by ``divisor``, multiplied by ``factor``, then capped: softcap * tanh(logits / softcap).
    Differentiable in x, weight and bias. Raises IndexError for a label outside of the vocabulary.

    Examples:
        >>> x, weight = torch.randn(4, 8), torch.randn(100, 8, requires_grad=True)
        >>> amd_ops.linear_cross_entropy(x, weight, torch.tensor([1, 99, -100, 0])).mean().backward()
    """
    _op.calls += 1
    try:
        result: Tensor = _op.call(x, weight, bias, labels, ignore_index, Form(divisor, factor, softcap))
    except IndexError:
        raise
    except TORCH_ERRORS:
        _diagnose(x, weight, labels, bias)
        raise
    return result


def causal_lm_loss(
    loss_function: Any,
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Any = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    *,
    logits_divisor: float | None = None,
    logits_factor: float | None = None,
    logits_softcap: float | None = None,
    **ignored: Any,
) -> Tensor | None:
    """Return loss_function(head(hidden), labels, vocab_size, ...) without the logits, or None for stock's statements.

    What overlaid forwards of causal models call where labels are given. hidden [B, S, H], labels [B, S]; the other
    names are those of transformers' ForCausalLMLoss, which also ignores what else it is given; the last three say what
    becomes of the logits before the loss. Where no gradients are wanted, an evaluation, the caller may read the logits.
    The choice and its reason are counted under ``causal_lm_loss``.

    Examples:
        >>> head, hidden = nn.Linear(8, 100, bias=False), torch.randn(1, 4, 8)
        >>> labels = torch.tensor([[1, 2, 3, 4]])
        >>> amd_ops.causal_lm_loss(print, head, hidden, labels, 100) is None  # not transformers' own loss
        True
    """
    if _compiling():
        return None
    if not torch.is_grad_enabled():
        _site.slow.calls += 1
        return None
    reason = _why_not(loss_function, head, hidden, labels, vocab_size, shift_labels)
    if reason:
        _site.declined(reason)
        return None
    _site.fast.calls += 1
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    shift_labels = shift_labels.reshape(-1).to(hidden.device)
    parameters: dict[str, Any] = head.__dict__["_parameters"]
    losses = linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        parameters["weight"],
        shift_labels,
        parameters["bias"],
        ignore_index=ignore_index,
        divisor=logits_divisor,
        factor=logits_factor,
        softcap=logits_softcap,
    )
    if num_items_in_batch is None:
        num_items_in_batch = (shift_labels != ignore_index).sum()
    elif isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(losses.device)
    loss: Tensor = losses.sum() / num_items_in_batch
    return loss


def _why_not(
    loss_function: Any, head: nn.Module, hidden: Tensor, labels: Any, vocab_size: int, shift_labels: Any
) -> str:
    """Return "" where the loss may be computed from the hidden states, else why stock's statements must run."""
    if not modules.lives_in(loss_function, HOME) or not modules.original(loss_function, "ForCausalLMLoss"):
        return "the loss is not transformers' own ForCausalLMLoss"
    if not modules.cross_entropy_is_torchs():
        return "F.cross_entropy has been patched"
    reason = modules.why_not_plain(head) or modes.hidden() or modes.unlike(hidden)
    if reason:
        return reason
    weight = head.__dict__["_parameters"]["weight"]
    if weight.shape[0] != vocab_size:
        return "the head has other rows than the vocabulary has words"
    if weight.device != hidden.device:
        return "the head and the hidden states are on different devices"
    target = labels if shift_labels is None else shift_labels
    if (
        type(target) is not Tensor
        or target.dtype is not torch.int64
        or target.numel() * hidden.shape[-1] != hidden.numel()
    ):
        return "the labels are not one int64 for each hidden state"
    return ""


def _diagnose(x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 2:
        raise complaint("linear_cross_entropy", "x", describe(x), "[T, H]")
    if weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        raise complaint("linear_cross_entropy", "weight", describe(weight), f"[V, {x.shape[1]}]")
    if weight.dtype is not x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise complaint("linear_cross_entropy", "weight", str(weight.dtype), f"{x.dtype}, as x")
    if labels.shape != x.shape[:1] or labels.dtype is not torch.int64:
        raise complaint("linear_cross_entropy", "labels", describe(labels), f"[{x.shape[0]}] of int64")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise complaint("linear_cross_entropy", "bias", describe(bias), f"[{weight.shape[0]}]")
