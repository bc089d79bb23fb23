"""The loss of a causal language model from its hidden states: the head's product and the cross entropy, one block of
the vocabulary at a time, so that the logits never exist as a whole.

The node is ``backends/vocabulary.py``'s; here is what tier torch makes of one block, and stock's statements (tier
eager). torch's F.linear_cross_entropy makes gradients in its forward and knows neither scales nor soft caps of logits;
so does Liger's fused linear cross entropy, which also waits for the device: neither is a provider of this op.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import modes, modules
from ..backends.vocabulary import Blocked, Form, Steps, cast, within
from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import Site, always
from .tiers import make_op

HOME = "transformers.loss.loss_utils"
"""Where the loss lives that may be replaced; the function there is asked for, not its name."""

_compiling = torch.compiler.is_dynamo_compiling
_site = Site("causal_lm_loss", "fused", lambda settings: settings.asked("USE_FUSED_CROSS_ENTROPY"))


def _formed(logits: Tensor, form: Form) -> tuple[Tensor, Tensor | None]:
    """Stock's statements, each rounded as there, and its cast to fp32; beside them what the soft cap's tanh gave."""
    tanh = None
    if form.divisor is not None:
        logits = logits / form.divisor
    if form.factor is not None:
        logits = logits * form.factor
    if form.softcap is not None:
        tanh = torch.tanh(logits / form.softcap)
        logits = tanh * form.softcap
    return logits.float(), tanh


def _labelled(labels: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Return (whether each row's label is in this block, its column in it) as [T] and [T, 1]."""
    inside = (labels >= first) & (labels < first + count)
    return inside, (labels - first).clamp(0, count - 1)[:, None]


def _add(logits: Tensor, labels: Tensor, first: int, total: Tensor, target: Tensor, form: Form) -> None:
    logits, _ = _formed(logits, form)
    inside, column = _labelled(labels, first, logits.shape[1])
    target += torch.where(inside, logits.gather(1, column)[:, 0], 0.0)
    torch.logaddexp(total, torch.logsumexp(logits, 1), out=total)


def _gradient(logits: Tensor, labels: Tensor, first: int, total: Tensor, dy: Tensor, form: Form) -> Tensor:
    formed, tanh = _formed(logits, form)
    grads = _softmax_gradient(formed, total, labels, first).mul_(dy[:, None])
    return _through(grads, tanh, form).to(logits.dtype)


def _softmax_gradient(logits: Tensor, total: Tensor, labels: Tensor, first: int) -> Tensor:
    """Turn one block's logits, which are used up, into softmax minus the label's one."""
    grads = logits.sub_(total[:, None]).exp_()
    inside, column = _labelled(labels, first, logits.shape[1])
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
    """By blocks of the vocabulary."""
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or labels.shape != x.shape[:1]:
        raise ValueError("shapes do not fit")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError("the bias does not fit")
    if x.dtype is not weight.dtype and not cast(x):
        raise ValueError("dtypes differ")
    return _blocked(x, weight, bias, labels, ignore_index, form)


def eager_linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, form: Form
) -> Tensor:
    """Stock's statements: the whole logits in fp32."""
    logits, _ = _formed(F.linear(x, weight, bias), form)
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")


_blocked = Blocked.of(Steps(_add, _gradient), eager_linear_cross_entropy)
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
    if weight.dim() == 2:
        within(labels, weight, ignore_index)
    try:
        result: Tensor = _op.call(x, weight, bias, labels, ignore_index, Form(divisor, factor, softcap))
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
