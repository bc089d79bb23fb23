"""What overlaid forwards call for their projections: q/k/v in one GEMM, gate and up in one GEMM with the activation
behind it.

Nothing is packed under torch.compile or stream capture, and nothing packed is used where autograd wants the weights'
gradients: the stock modules run then, with a counted reason. preparation.py packs a whole model ahead of time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import packing, preshuffle, toggles
from .activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from .dispatch import Site
from .linear import apply_linear, linear
from .modules import is_patched, watched_globally
from .packing import Packed, States

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = (("gate_proj", "up_proj"), ("w1", "w3"))
GATED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu_and_mul,
    "gelu": gelu_and_mul,
    "gelu_tanh": gelu_tanh_and_mul,
}

KEY = "_amd_packed"
_compiling = torch.compiler.is_dynamo_compiling
_qkv = Site("qkv_proj", "fused", lambda settings: settings.asked("USE_FUSED_PROJECTIONS"))
_mlp = Site("gated_mlp", "fused", lambda settings: settings.asked("USE_FUSED_PROJECTIONS"))


def qkv_proj(attn: nn.Module, hidden_states: Tensor, names: tuple[str, ...] = QKV) -> tuple[Tensor, ...]:
    """Project ``hidden_states`` [..., K] by attn's Linears ``names``: one GEMM where they can share one, else one
    call each.

    Returns one tensor [..., out_features] per name (any sizes: grouped kv heads, a q of double width), views of one
    result when fused. Biases are honoured. The choice and its reason are counted under ``qkv_proj``.
    """
    packed = _packed(attn, names, _qkv)
    if packed is None:
        return tuple(_single(attn, name, hidden_states) for name in names)
    assert packed.weight is not None
    return tuple(_product(hidden_states, packed).split_with_sizes(packed.sizes, dim=-1))


def gated_mlp(
    mlp: nn.Module,
    x: Tensor,
    *,
    gate: str = "gate_proj",
    up: str = "up_proj",
    gate_up: str | None = None,
    down: str = "down_proj",
    act: str = "act_fn",
) -> Tensor:
    """down(act(gate(x)) * up(x)) for the named submodules; ``gate_up`` names one Linear that gives gate and up, in
    this order.

    The activation is read from the module ``act`` ("" means F.silu): SiLU, GELU and tanh-GELU get the fused op when
    USE_OPTIMIZED_OPS is on, any other module is called on the gate half. Fused gate and up are counted under
    ``gated_mlp``.
    """
    return _single(mlp, down, gated_hidden(mlp, x, gate=gate, up=up, gate_up=gate_up, act=act))


def gated_hidden(
    mlp: nn.Module,
    x: Tensor,
    *,
    gate: str = "gate_proj",
    up: str = "up_proj",
    gate_up: str | None = None,
    act: str = "act_fn",
) -> Tensor:
    """act(gate(x)) * up(x): what a gated MLP hands to its down projection. The names are those of gated_mlp."""
    activation: Any = _child(mlp, act) if act else F.silu
    if gate_up is not None:
        both = _single(mlp, gate_up, x)
    else:
        packed = _packed(mlp, (gate, up), _mlp)
        if packed is None:
            result: Tensor = activation(_single(mlp, gate, x)) * _single(mlp, up, x)
            return result
        both = _product(x, packed)
    return _activated(activation, both)


def _activated(activation: Callable[[Tensor], Tensor], both: Tensor) -> Tensor:
    fuse = not _compiling() and toggles.settings().use_optimized_ops
    kind = activation_kind(activation) if fuse else ""
    if kind:
        return GATED[kind](both)
    gate, up = both.chunk(2, dim=-1)
    return activation(gate) * up


def activation_kind(activation: Any) -> str:
    """Recognise an activation module by its type: ``silu``, ``gelu``, ``gelu_tanh``, or "" for anything else or a
    watched one.

    transformers' classes are known by name, without importing them; those that choose a formula at construction are
    asked for it.
    """
    if activation is F.silu:
        return "silu"
    if not isinstance(activation, nn.Module) or activation._forward_hooks or activation._forward_pre_hooks:
        return ""
    if is_patched(activation) or watched_globally():
        return ""
    found = type(activation)
    if found is nn.SiLU or (found.__name__ == "SiLUActivation" and found.__module__ == "transformers.activations"):
        return "silu"
    if found is nn.GELU:
        return "gelu_tanh" if activation.approximate == "tanh" else "gelu"
    if not found.__module__.startswith("transformers."):
        return ""
    inner = getattr(activation, "act", None)
    if found.__name__ == "GELUActivation" and inner is F.gelu:
        return "gelu"
    if found.__name__ in ("GELUTanh", "PytorchGELUTanh"):
        plain = getattr(inner, "func", None) is F.gelu and getattr(inner, "keywords", None) == {"approximate": "tanh"}
        return "gelu_tanh" if plain or found.__name__ == "PytorchGELUTanh" else ""
    return ""


def _child(owner: nn.Module, name: str) -> Any:
    """``owner.name``, read where nn.Module's own attribute lookup would find it last."""
    child = owner.__dict__["_modules"].get(name)
    return getattr(owner, name) if child is None else child


def _single(owner: nn.Module, name: str, x: Tensor) -> Tensor:
    """One projection by its own module, or through the linear op when that is on."""
    module = _child(owner, name)
    if toggles.on.linear:
        return apply_linear(module, x)
    result: Tensor = module(x)
    return result


def _product(x: Tensor, packed: Packed) -> Tensor:
    assert packed.weight is not None
    if toggles.on.preshuffle:
        preshuffle.consider_packed(packed, x)
    return linear(x, packed.weight, packed.bias) if toggles.on.linear else F.linear(x, packed.weight, packed.bias)


def _packed(owner: nn.Module, names: tuple[str, ...], site: Site) -> Packed | None:
    """Return the packed weights to use now, packing or packing again where possible, or None with the reason
    counted.
    """
    if _compiling():
        return None
    if not toggles.settings().use_fused_projections:
        site.slow.calls += 1
        return None
    state = packed_state(owner, names)
    reason = state.fresh(owner, names)
    if reason:
        if torch.is_grad_enabled() and _wants_grad(owner, names):
            reason = "gradients of the weights are wanted"
        else:
            reason = packing.pack(state, owner, names)
    elif torch.is_grad_enabled() and state.needs_grad():
        reason = "gradients of the weights are wanted"
    if reason:
        site.declined(reason)
        return None
    site.fast.calls += 1
    return state


def _wants_grad(owner: nn.Module, names: tuple[str, ...]) -> bool:
    modules = owner.__dict__["_modules"]
    return any(p.requires_grad for name in names if modules.get(name) is not None for p in modules[name].parameters())


def packed_state(owner: nn.Module, names: tuple[str, ...]) -> Packed:
    """Return the packed group of a module's Linears ``names``, a new one where there is none of its own."""
    states = owner.__dict__.get(KEY)
    state = states.get(names) if type(states) is States else None
    if state is None or (state.owner and state.owner != id(owner)):
        # New, unpickled, or a shallow copy that carries the original's dict, which must be left alone.
        kept = states if type(states) is States and state is None else States()
        owner.__dict__[KEY] = kept
        state = kept[names] = Packed()
    return state
