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

from . import modules, packing
from .dispatch import Site
from .modules import form_of, why_not_unwatched
from .moe import ACTIVATIONS, moe, softmax_top_k
from .packing import Packed, States
from .projections import KEY, activation_kind
from .residual import MLP_MARK

_compiling = torch.compiler.is_dynamo_compiling
site = Site("moe_block", "fused", lambda settings: settings.asked("USE_FUSED_PROJECTIONS"))
"""Blocks of experts of either kind: lists of modules here, 3-D parameters in stacked.py."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
GATE_UP, DOWN = ("*", "gate and up"), ("*", "down")


class Experts:
    """A packed list of experts, and everything whose change would make the packed matrices wrong."""

    def __init__(self, experts: list[nn.Module], names: tuple[str, str, str], act: str, w1: Packed, w2: Packed) -> None:
        assert w1.weight is not None
        assert w2.weight is not None
        self.experts = experts
        count = len(experts)
        gate_rows, size = w1.weight.shape[0] // count, w1.weight.shape[1]
        self.w1 = w1.weight.view(count, gate_rows, size)
        self.w2 = w2.weight.view(count, size, gate_rows // 2)
        self.activation = activation_kind(getattr(experts[0], act))
        self.children = [expert.__dict__["_modules"] for expert in experts]
        self.names = (*names, act)
        self.members = [child[name] for child in self.children for name in self.names if name in child]
        self.linears = [child[name] for child in self.children for name in names]
        self.parameters = [linear.__dict__["_parameters"] for linear in self.linears]
        self.weights = [parameters["weight"] for parameters in self.parameters]
        rows = {id(parameter): row for packed in (w1, w2) for own in packed.rows for _, parameter, row in own}
        self.rows = [rows[id(weight)] for weight in self.weights]
        self.states = [module.__dict__ for module in (*experts, *self.members)]
        self.hooks = [state[name] for state in self.states for name in _HOOKS]

    def changed(self, experts: nn.Module) -> str:
        """Return "" while the packed matrices still are what the experts compute with, else what changed.

        Runs at every use over hundreds of modules, so every line is one pass in C.
        """
        if modules.linears_patched() or modules.watched_globally():
            return "nn.Linear is patched or watched globally"
        if list(experts.__dict__["_modules"].values()) != self.experts:
            return "an expert was replaced"
        if any(self.hooks):
            return "a hook is registered on an expert"
        if any("forward" in state for state in self.states):
            return "an expert's forward has been patched"
        members = [child.get(name) for child in self.children for name in self.names if name in child]
        if members != self.members or set(map(type, self.linears)) != {nn.Linear}:
            return "a module of an expert was replaced"
        weights = [parameters.get("weight") for parameters in self.parameters]
        if not all(map(operator.is_, weights, self.weights)) or not all(map(Tensor.is_set_to, self.weights, self.rows)):
            return "a parameter of an expert moved or was replaced"
        if any(parameters.get("bias") is not None for parameters in self.parameters):
            return "an expert has a bias"
        return ""


def softmax_moe(
    experts: nn.Module, hidden: Tensor, router_logits: Tensor, top_k: int, renormalise: bool
) -> Tensor | None:
    """Route hidden [T, H] by router_logits [T, E] and return the experts' weighted sum, or None for the stock loop."""
    packed = _usable(experts, hidden)
    if packed is None:
        return None
    weights, ids = softmax_top_k(router_logits, top_k, renormalise=renormalise, dtype=hidden.dtype)
    return moe(hidden, packed.w1, packed.w2, weights, ids, activation=packed.activation)


def moe_experts(experts: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor | None:
    """Return the weighted sum of the experts that ids [T, k] name, or None for the stock loop."""
    packed = _usable(experts, hidden)
    if packed is None:
        return None
    return moe(hidden, packed.w1, packed.w2, weights.float(), ids.to(torch.int32), activation=packed.activation)


def _usable(experts: nn.Module, hidden: Tensor) -> Experts | None:
    if _compiling():
        return None
    packed = packed_experts(experts)
    reason = packed if isinstance(packed, str) else _unfit(packed, hidden)
    if reason or isinstance(packed, str):
        site.declined(reason)
        return None
    site.fast.calls += 1
    return packed


def _unfit(packed: Experts, hidden: Tensor) -> str:
    if type(hidden) is not Tensor or hidden.dtype is not packed.w1.dtype or hidden.device != packed.w1.device:
        return "the hidden states are a subclass, or of another dtype or device than the experts"
    if torch.is_autocast_enabled(hidden.device.type):
        return "autocast chooses the dtype of the experts"
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in packed.weights):
        return "gradients of the weights are wanted"
    return ""


def packed_experts(experts: nn.Module) -> Experts | str:
    """Return the packed form of a list of gated MLPs, packing them first where needed, or the reason why not."""
    states = experts.__dict__.get(KEY)
    known = states.get(GATE_UP) if type(states) is States else None
    if known is not None and known.owner == id(experts) and known.whole is not None:
        reason = known.whole.changed(experts)
        if not reason:
            found: Experts = known.whole
            return found
    return _pack(experts)


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
        return "gradients of the weights are wanted"
    first = packing.why_not((*chain(*linears),), alike=False)
    if first:
        return first
    shapes = {tuple(tuple(linear.weight.shape) for linear in own if linear is not None) for own in linears}
    (gates, ups, downs), *others = shapes
    if others or gates != ups or downs != gates[::-1]:
        return "the experts differ in size"
    states = experts.__dict__.get(KEY)
    if type(states) is not States or any(state.owner not in (0, id(experts)) for state in states.values()):
        states = experts.__dict__[KEY] = States()  # none yet, or that of the original of a shallow copy
    for expert in listed:
        _release(expert)
    w1, w2 = states.setdefault(GATE_UP, Packed()), states.setdefault(DOWN, Packed())
    reason = packing.pack_linears(w1, experts, tuple(chain(*(own[:2] for own in linears))))
    reason = reason or packing.pack_linears(w2, experts, tuple(own[2] for own in linears))
    if reason:
        return reason
    w1.whole = Experts(listed, (gate, up, down), act, w1, w2)
    if w1.whole.activation not in ACTIVATIONS:
        w1.whole = None
        return "the experts' activation has no fused form"
    packed: Experts = w1.whole
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
    for state in states.values():
        if state.owner == id(expert):
            packing.unpack(state)
