"""What overlaid mixture-of-experts blocks call, and the packing of a list of experts into two matrices.

The experts stay the modules that they are: their weights' rows move into one [E, 2I, H] and one [E, H, I], as
packing.py does it for q/k/v, and every use looks whether all of them are still there, unwatched and unchanged. Where
they are not, where autograd wants their gradients, or under torch.compile, None comes back with the reason counted and
the stock loop runs.
"""

from __future__ import annotations

import operator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .. import frozen, modes, modules
from ..dispatch import Site
from ..modules import form_of, why_not_unwatched
from ..ops.moe import ACTIVATIONS, moe, softmax_top_k
from ..weights import packing
from ..weights.packing import KEY, Packed
from .projections import activation_kind
from .residual import MLP_MARK

_compiling = torch.compiler.is_dynamo_compiling
site = Site("moe_block", "fused", lambda settings: settings.asked("USE_FUSED_PROJECTIONS"))
"""Blocks of experts of either kind: lists of modules here, 3-D parameters in stacked.py."""
WANTED = "gradients of the weights are wanted"
GATE_UP, DOWN = ("*", "gate and up"), ("*", "down")

_modules_of, _parameters_of = operator.itemgetter("_modules"), operator.itemgetter("_parameters")
_state_of, _weight_of = operator.attrgetter("__dict__"), operator.itemgetter("weight")
_where = operator.methodcaller("data_ptr")
_form = operator.methodcaller("size"), operator.methodcaller("stride"), operator.attrgetter("dtype")


class Experts:
    """What a packed list of experts looked like when its two matrices were made. It keeps nothing of it alive."""

    def __init__(self, experts: list[nn.Module], names: tuple[str, str, str], act: str, w1: Packed, w2: Packed) -> None:
        self.cls, self.count, self.names, self.act = type(experts[0]), len(experts), names, act
        self.w1, self.w2 = w1, w2
        self.activation = activation_kind(getattr(experts[0], act))
        weights = [linear.__dict__["_parameters"]["weight"] for linear in self._linears(experts)]
        self.rows = self._rows(weights)

    def _linears(self, experts: list[nn.Module]) -> list[Any]:
        children = list(map(_modules_of, map(_state_of, experts)))
        return [child.get(name) for child in children for name in self.names]

    def _rows(self, weights: list[Any]) -> list[list[Any]]:
        """Address, sizes, strides and dtype of every weight."""
        where = [frozen.address(one) for one in weights] if type(weights[0]) is frozen.Frozen else map(_where, weights)
        return [list(where), *(list(map(ask, weights)) for ask in _form)]

    def changed(self, experts: nn.Module) -> str:
        """Return "" while the packed matrices still are what the experts compute with now, else what changed.

        Runs at every use over hundreds of modules, so most lines are one pass in C.
        """
        if modules.linears_patched() or modules.watched_globally():
            return "nn.Linear is patched or watched globally"
        listed = list(experts.__dict__["_modules"].values())
        if len(listed) != self.count or set(map(type, listed)) != {self.cls}:
            return "an expert was replaced"
        acts = [getattr(expert, self.act, None) for expert in listed]
        if form_of(listed[0], MLP_MARK) is None or set(map(activation_kind, acts)) != {self.activation}:
            return "the experts' forward or activation was replaced"
        linears = self._linears(listed)
        if set(map(type, linears)) != {nn.Linear}:
            return "a module of an expert was replaced"
        states = list(map(_state_of, linears))
        if any(map(modules.altered, states)) or any(map(why_not_unwatched, listed)):
            return "a hook is registered on an expert, or its forward has been patched"
        parameters = list(map(_parameters_of, states))
        if any(one.get("bias") is not None for one in parameters):
            return "an expert has a bias"
        weights = [one.get("weight") for one in parameters]
        if len(set(map(type, weights))) != 1 or not frozen.is_plain(weights[0]):
            return "a parameter of an expert is not a plain nn.Parameter"
        if self.w1.weight is None or self.w2.weight is None or self._rows(weights) != self.rows:
            return "a parameter of an expert moved or was replaced"
        return ""

    def matrices(self) -> tuple[Tensor, Tensor]:
        """The two matrices as views, [E, 2I, H] and [E, H, I]."""
        w1, w2 = self.w1.weight, self.w2.weight
        assert w1 is not None
        assert w2 is not None
        return w1.view(self.count, -1, w1.shape[1]), w2.view(self.count, w1.shape[1], -1)


def softmax_moe(
    experts: nn.Module, hidden: Tensor, router_logits: Tensor, top_k: int, renormalise: bool
) -> Tensor | None:
    """Route hidden [T, H] by router_logits [T, E] and return the experts' weighted sum, or None for the stock loop.

    Examples:
        >>> experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))  # no gated MLPs: stock's loop runs
        >>> amd_ops.softmax_moe(experts, torch.ones(1, 4), torch.zeros(1, 8), 2, True) is None
        True
    """
    packed = _usable(experts, hidden)
    if packed is None:
        return None
    weights, ids = softmax_top_k(router_logits, top_k, renormalise=renormalise, dtype=hidden.dtype)
    return moe(hidden, *packed.matrices(), weights, ids, activation=packed.activation)


def moe_experts(experts: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor | None:
    """Return the weighted sum of the experts that ids [T, k] name, or None for the stock loop.

    Examples:
        >>> experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))  # no gated MLPs: stock's loop runs
        >>> amd_ops.moe_experts(experts, torch.ones(1, 4), torch.zeros(1, 2), torch.ones(1, 2)) is None
        True
    """
    packed = _usable(experts, hidden)
    if packed is None:
        return None
    return moe(hidden, *packed.matrices(), weights, ids, activation=packed.activation)


def _usable(experts: nn.Module, hidden: Tensor) -> Experts | None:
    if _compiling():
        return None
    packed = modes.hidden() or packed_experts(experts)
    reason = packed if isinstance(packed, str) else _unfit(packed, hidden)
    if reason or isinstance(packed, str):
        site.declined(reason)
        return None
    site.fast.calls += 1
    return packed


def _unfit(packed: Experts, hidden: Tensor) -> str:
    w1 = packed.w1.weight
    if w1 is None or type(hidden) is not Tensor or hidden.dtype is not w1.dtype or hidden.device != w1.device:
        return "the hidden states are a subclass, or of another dtype or device than the experts"
    if torch.is_autocast_enabled(hidden.device.type):
        return "autocast chooses the dtype of the experts"
    if torch.is_grad_enabled() and (packed.w1.needs_grad() or packed.w2.needs_grad()):
        return WANTED
    return ""


def packed_experts(experts: nn.Module) -> Experts | str:
    """Return the packed form of a list of gated MLPs, packing them first where needed, or the reason why not."""
    known = _known(experts)
    if known is not None and not known.changed(experts):
        return known
    with packing.lock():
        known = _known(experts)  # another thread may just have packed them
        return known if known is not None and not known.changed(experts) else _pack(experts)


def _known(experts: nn.Module) -> Experts | None:
    gate_up = packing.group(experts, GATE_UP)
    found: Experts | None = None if gate_up is None or gate_up.owner != id(experts) else gate_up.whole
    return found


def _pack(experts: nn.Module) -> Experts | str:
    listed = list(experts.__dict__["_modules"].values())
    named = names_of(listed)
    if isinstance(named, str):
        return named
    (gate, up, down), act = named
    linears = [[expert._modules.get(name) for name in (gate, up, down)] for expert in listed]
    if any(getattr(linear, "bias", None) is not None for own in linears for linear in own):
        return "an expert has a bias"
    if torch.is_grad_enabled() and any(p.requires_grad for own in linears for m in own if m for p in m.parameters()):
        return WANTED
    first = packing.why_not((*chain(*linears),), alike=False)
    if first:
        return first
    shapes = {tuple(tuple(linear.weight.shape) for linear in own if linear is not None) for own in linears}
    (gates, ups, downs), *others = shapes
    if others or gates != ups or downs != gates[::-1]:
        return "the experts differ in size"
    for expert in listed:
        _release(expert)
    w1 = packing.pack_linears(experts, GATE_UP, tuple(chain(*(own[:2] for own in linears))))
    w2 = packing.pack_linears(experts, DOWN, tuple(own[2] for own in linears))
    if isinstance(w1, str) or isinstance(w2, str):
        return w1 if isinstance(w1, str) else str(w2)
    packed = Experts(listed, (gate, up, down), act, w1, w2)
    if packed.activation not in ACTIVATIONS:
        return "the experts' activation has no fused form"
    w1.whole = packed
    return packed


def names_of(listed: list[nn.Module]) -> tuple[tuple[str, str, str], str] | str:
    """Return the attribute names (gate, up, down), act that all experts have, or the reason why these are no
    experts that we know.
    """
    if not listed or len(set(map(type, listed))) != 1:
        return "the experts are none, or of several classes"
    form = form_of(listed[0], MLP_MARK)
    if form is None or "gate_up" in form:
        return "the experts' forward is not one that the overlaid text marks as a gated MLP"
    act = form.get("act", "act_fn")
    kinds = {activation_kind(getattr(expert, act, None)) for expert in listed}
    if len(kinds) != 1 or not kinds <= set(ACTIVATIONS):
        return "the experts' activation has no fused form"
    for expert in listed:
        reason = why_not_unwatched(expert)
        if reason or "forward" in expert.__dict__:
            return reason or "an expert's forward has been patched"
    return (form.get("gate", "gate_proj"), form.get("up", "up_proj"), form.get("down", "down_proj")), act


def _release(expert: nn.Module) -> None:
    """Give a single expert's own packed gate and up storage of their own again: all experts share one now."""
    states: dict[Any, Packed] = expert.__dict__.pop(KEY, {})
    for packed in states.values():
        if packed.owner == id(expert):
            packing.unpack(packed)
