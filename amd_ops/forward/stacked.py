"""What overlaid blocks call for experts that are 3-D parameters already: transformers 5's, and gpt_oss's in 4.

Nothing is packed and nothing kept: the parameters go into the op as they are. Where one of them is not plain, where
somebody watches the module or chose an implementation of experts that is not stock's own formula, the module itself
runs, with the reason counted under ``moe_block``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import modes
from ..backends.shuffled import plain_of
from ..frozen import is_plain
from ..modules import form_of, lives_in, original, why_not_unwatched
from ..ops.moe import ACTIVATIONS, clamped_moe, moe
from .experts import site
from .projections import activation_kind

MARK = "_amd_experts"
"""forward._amd_experts = "gated" or "clamped": that loop over 3-D parameters computes what moe or clamped_moe does."""

_compiling = torch.compiler.is_dynamo_compiling
_CHOOSER = "transformers.integrations.moe"
_GATED = ("gate_up_proj", "down_proj")
_CLAMPED = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")


def stacked_experts(experts: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """experts(hidden, ids, weights): the weighted sum of the k experts that each token names.

    hidden [T, H], ids [T, k] in [0, E), weights [T, k] -> [T, H]. Parameters gate_up_proj [E, 2I, H] and down_proj
    [E, H, I] (the clamped form: [E, H, 2I], [E, I, H], and a bias for each). Runs the op, or the module itself.

    Examples:
        >>> class Experts(nn.Module):  # not an overlaid class: it runs itself
        ...     def forward(self, hidden, ids, weights):
        ...         return hidden * weights.sum(-1, keepdim=True)
        >>> amd_ops.stacked_experts(Experts(), torch.ones(1, 2), torch.zeros(1, 1), torch.full((1, 1), 0.5))
        tensor([[0.5000, 0.5000]])
    """
    result = None if _compiling() else _through_the_op(experts, hidden, ids, weights)
    if result is None:
        result = experts(hidden, ids, weights)
    return result


def _through_the_op(experts: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor | None:
    form = _form(experts)
    if form is None:
        reason = "the experts' forward is not one that the overlaid text marks"
    else:
        reason = (
            modes.hidden() or why_not_unwatched(experts) or _why_not_chosen(experts) or _why_not_gate(experts, form)
        )
        if not reason and (hidden.dim() != 2 or ids.dim() != 2 or weights.shape != ids.shape):
            reason = "the hidden states, ids and weights are not [T, H], [T, k] and [T, k]"
    names = _CLAMPED if form == "clamped" else _GATED
    found = reason or _plain(experts, names, hidden)
    if not isinstance(found, str) and torch.is_grad_enabled() and any(one.requires_grad for one in found):
        found = "gradients of the weights are wanted"  # one expert's gradient would be as large as that of all
    if isinstance(found, str):
        site.declined(found)
        return None
    site.fast.calls += 1
    found = list(map(plain_of, found))
    if form == "clamped":
        return _clamped(experts, hidden, found, weights, ids)
    gate_up, down = found
    kind = activation_kind(experts.act_fn)
    return moe(hidden, gate_up, down, weights, ids, activation=kind)


def _form(experts: nn.Module) -> str | None:
    """The mark on the class's loop, also below the decorator by which transformers chooses an implementation.

    A subclass or a patch with a forward of its own has no mark, or another wrapper around it.
    """
    forward = type(experts).forward
    inner = getattr(forward, "__wrapped__", None)
    if inner is None:
        form: str | None = form_of(experts, MARK)
        return form
    # A wrapper copies the names of what it wraps; whose it is, only its code and its globals tell.
    if not lives_in(forward, _CHOOSER) or not original(inner, "forward"):
        return None
    form = inner.__dict__.get(MARK)
    return form


def _why_not_chosen(experts: Any) -> str:
    """Return "" where what the config names computes stock's formula: the loop, or transformers' own two fast forms."""
    forward = type(experts).forward
    if "__wrapped__" not in forward.__dict__:
        return ""
    name = getattr(experts.config, "_experts_implementation", None)
    chooser = forward.__globals__
    if name not in (None, "eager"):
        own = chooser.get(f"{name}_experts_forward") if name in ("grouped_mm", "batched_mm") else None
        if own is None or chooser["ALL_EXPERTS_FUNCTIONS"].get(name) is not own:
            return f"the experts' implementation is {name!r}, not stock's own formula"
    return "the experts are spread over ranks" if getattr(experts, "_is_expert_parallel", False) else ""


def _why_not_gate(experts: Any, form: str) -> str:
    """Return "" where the gate is the one that the form names: the class's own when clamped, else transformers' default
    one in a formula for which we have an op.
    """
    gate: Any = getattr(type(experts), "_apply_gate", None)
    forward = type(experts).forward
    if "_apply_gate" in experts.__dict__:
        return "the experts' gate has been patched"
    if form == "clamped":
        inner = getattr(forward, "__wrapped__", forward)
        own = original(gate, "_apply_gate") and gate.__globals__ is inner.__globals__
        own = own and gate.__qualname__.rpartition(".")[0] == inner.__qualname__.rpartition(".")[0]
        return "" if own else "the experts' gate is not the one of their class"
    if gate is not None and not (lives_in(gate, _CHOOSER) and original(gate, "_default_apply_gate")):
        return "the experts' gate is one of their own"
    known = activation_kind(getattr(experts, "act_fn", None)) in ACTIVATIONS
    return "" if known else "the experts' activation has no fused form"


def _plain(experts: nn.Module, names: tuple[str, ...], hidden: Tensor) -> list[Any] | str:
    """The parameters of these names, or why they cannot be handed to an op with these hidden states."""
    found: list[Any] = [experts.__dict__["_parameters"].get(name) for name in names]
    if not all(map(is_plain, found)) or type(hidden) is not Tensor:
        return "the experts' parameters or the hidden states are not plain"
    if any(parameter.dtype is not hidden.dtype or parameter.device != hidden.device for parameter in found):
        return "the experts and the hidden states differ in dtype or device"
    if torch.is_autocast_enabled(hidden.device.type):
        return "autocast chooses the dtype of the experts"
    return found


def _clamped(experts: Any, hidden: Tensor, found: list[Any], weights: Tensor, ids: Tensor) -> Tensor:
    gate_up, gate_up_bias, down, down_bias = found
    return clamped_moe(
        hidden, gate_up, gate_up_bias, down, down_bias, weights, ids, alpha=experts.alpha, limit=experts.limit
    )  # fmt: skip


def clamped_experts(experts: nn.Module, hidden: Tensor, ids: Tensor, scores: Tensor) -> Tensor | None:
    """Experts with a clamped gate whose own forward asks: hidden [B, S, H] or [T, H], ids [T, k], scores [T, E].

    Returns [B, S, H] as the stock forward does, or None where the stock forward must run.

    Examples:
        >>> class Experts(nn.Module):  # no parameters of experts: stock's own forward runs
        ...     pass
        >>> amd_ops.clamped_experts(Experts(), torch.ones(1, 2, 8), torch.zeros(2, 1), torch.ones(2, 4)) is None
        True
    """
    if _compiling():
        return None
    owner: Any = experts
    found = modes.hidden() or _plain(experts, _CLAMPED, hidden)
    if isinstance(found, str):
        site.declined(found)
        return None
    site.fast.calls += 1
    rows, weights = hidden.reshape(-1, owner.hidden_size), scores
    if scores.shape == ids.shape:  # every expert is chosen: scores are in the experts' order, ids in their own
        weights = scores.gather(1, ids)
    out = _clamped(owner, rows, found, weights, ids)
    return out.view(hidden.shape[0], -1, hidden.shape[-1])
