"""What overlaid forwards call for their projections: q/k/v in one GEMM, gate and up in one GEMM with the activation
behind it.

Nothing is packed under torch.compile or stream capture: the stock modules run then, with a counted reason.
preparation.py packs a whole model ahead of time. Where gradients are wanted, packed_linear.py's node computes; a trace
holds its op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import modes, modules, toggles
from ..dispatch import Site
from ..modules import has_own_forward, original, why_not_unwatched
from ..ops.activation import gelu_and_mul, gelu_tanh_and_mul, silu_and_mul
from ..ops.linear import apply_linear, linear
from ..ops.packed_linear import joint, product
from ..weights import packing, preshuffle, shards
from ..weights.packing import Packed
from ..weights.shards import Shards

QKV = ("q_proj", "k_proj", "v_proj")
LOW_RANK = ("q_a_proj", "kv_a_proj_with_mqa")
"""Latent attention's projections down."""
GATE_UP = (("gate_proj", "up_proj"), ("w1", "w3"))
GATED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu_and_mul,
    "gelu": gelu_and_mul,
    "gelu_tanh": gelu_tanh_and_mul,
}

ATTENTION_MARK = "_amd_attention"
"""forward._amd_attention = (rotation, "plain" or "head norms", the words of the cache's update, forward): that forward
is this attention and nothing else."""
_compiling = torch.compiler.is_dynamo_compiling
_qkv = Site("qkv_proj", "fused", lambda settings: settings.asked("USE_FUSED_PROJECTIONS"))
_mlp = Site("gated_mlp", "fused", lambda settings: settings.asked("USE_FUSED_PROJECTIONS"))


def qkv_proj(attn: nn.Module, hidden_states: Tensor, names: tuple[str, ...] = QKV) -> tuple[Tensor, ...]:
    """Project ``hidden_states`` [..., K] by attn's Linears ``names``: one GEMM where they can share one, else one
    call each.

    Returns one tensor [..., out_features] per name (any sizes: grouped kv heads, a q of double width), views of one
    result when fused. Biases are honoured. The choice and its reason are counted under ``qkv_proj``.

    Examples:
        >>> attn = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "k_proj": nn.Linear(8, 4), "v_proj": nn.Linear(8, 4)})
        >>> [tuple(part.shape) for part in amd_ops.qkv_proj(attn, torch.ones(3, 8))]
        [(3, 8), (3, 4), (3, 4)]
    """
    both = joint(attn, names, hidden_states) if _compiling() else None
    if both is not None:
        linears: list[Any] = [attn.get_submodule(name) for name in names]
        return _parts(attn, both, [one.weight.shape[0] for one in linears])
    packed = _packed(attn, names, _qkv, hidden_states)
    if packed is None:
        return tuple(_single(attn, name, hidden_states) for name in names)
    return _parts(attn, _product(hidden_states, packed), packed.sizes)


def _parts(attn: nn.Module, both: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """The results beside one another as one tensor each.

    While autograd records, no result may keep the memory of another one alive that stock would have freed. A rotation
    lets go of q and k at once and only v is saved, so it gets memory of its own; where that is not known, all do.
    """
    if not both.requires_grad:
        return tuple(both.split_with_sizes(sizes, dim=-1))
    form = None if _compiling() else modules.form_of(attn, ATTENTION_MARK)
    if form is None or form[1] != "plain":
        copies: list[Tensor] = torch.ops.aten.split_with_sizes_copy(both, sizes, -1)
        return tuple(copies)
    parts = both.unsafe_split_with_sizes(sizes, dim=-1)  # stock's results may be written to, views of one node may not
    return (*parts[:-1], parts[-1].contiguous())


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

    Examples:
        >>> mlp = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("gate_proj", "up_proj", "down_proj")})
        >>> mlp.act_fn = nn.SiLU()
        >>> amd_ops.gated_mlp(mlp, torch.ones(3, 8)).shape
        torch.Size([3, 8])
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
    elif _compiling() and (traced := joint(mlp, (gate, up), x)) is not None:
        both = traced
    else:
        packed = _packed(mlp, (gate, up), _mlp, x)
        if packed is None:
            result: Tensor = activation(_single(mlp, gate, x)) * _single(mlp, up, x)
            return result
        both = _product(x, packed)
    return _activated(activation, both)


def _activated(activation: Callable[[Tensor], Tensor], both: Tensor) -> Tensor:
    fuse = not _compiling() and toggles.settings().use_optimized_ops and not modes.unlike(both)
    kind = activation_kind(activation) if fuse else ""
    if kind:
        return GATED[kind](both)
    # An activation may write to its input, which a view of one node may not be.
    gate, up = both.unsafe_chunk(2, dim=-1) if both.requires_grad else both.chunk(2, dim=-1)
    return activation(gate) * up


def activation_kind(activation: Any) -> str:
    """Recognise an activation module: ``silu``, ``gelu``, ``gelu_tanh``, or "" for anything else or a watched one.

    transformers' classes are known without importing them, while their forward is the one of their file and the
    function of torch that it calls is torch's; those that choose a formula at construction are asked for it.
    """
    if activation is F.silu:
        return "silu" if modules.silu_is_torchs() else ""
    if not isinstance(activation, nn.Module) or why_not_unwatched(activation):
        return ""
    found = type(activation)
    kind = _torchs(activation) if found.__module__.startswith("torch.") else _transformers(activation, found)
    torchs = modules.silu_is_torchs if kind == "silu" else modules.gelu_is_torchs
    return kind if kind and torchs() else ""


def _torchs(activation: Any) -> str:
    """The kind of one of torch's own modules."""
    if not has_own_forward(activation):
        return ""
    if type(activation) is nn.SiLU:
        return "silu"
    return ("gelu_tanh" if activation.approximate == "tanh" else "gelu") if type(activation) is nn.GELU else ""


def _transformers(activation: Any, found: Any) -> str:
    """The kind of one of transformers' classes, whose forward must be the one of its file."""
    forward = found.forward
    if not modules.lives_in(forward, "transformers.activations") or not original(forward, "forward"):
        return ""
    name, inner = found.__name__, activation.__dict__.get("act")
    if name == "SiLUActivation":
        return "silu"
    if name == "GELUActivation":
        return "gelu" if inner is F.gelu else ""
    if name in ("GELUTanh", "PytorchGELUTanh"):
        plain = getattr(inner, "func", None) is F.gelu and getattr(inner, "keywords", None) == {"approximate": "tanh"}
        return "gelu_tanh" if plain or name == "PytorchGELUTanh" else ""
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


def _product(x: Tensor, packed: Packed | Shards) -> Tensor:
    weight: Any = packed.weight
    if toggles.on.preshuffle:
        preshuffle.count(weight, x)
    if torch.is_grad_enabled() and (parameters := packed.differentiable(x)):
        return product(x, parameters, packed.sizes)
    return linear(x, weight, packed.bias) if toggles.on.linear else F.linear(x, weight, packed.bias)


def _packed(owner: nn.Module, names: tuple[str, ...], site: Site, x: Tensor) -> Packed | Shards | None:
    """Return the packed weights to use now, packing or packing again where possible, or None with the reason
    counted.
    """
    if _compiling():
        return None
    if not toggles.settings().use_fused_projections:
        site.slow.calls += 1
        return None
    reason = modes.hidden() or modes.unlike(x)
    if reason:
        site.declined(reason)
        return None
    spread = shards.group(owner, names, x)
    if spread is not None:
        if isinstance(spread, str):
            site.declined(spread)
            return None
        site.fast.calls += 1
        return spread
    packed = packing.group(owner, names)
    if packed is None or packed.fresh(owner):
        made = packing.pack(owner, names)
        if isinstance(made, str):
            site.declined(made)
            return None
        packed = made
    if torch.is_grad_enabled() and packed.untrainable():
        site.declined("gradients of weights that prepare() froze are wanted: restore(model) thaws them")
        return None
    site.fast.calls += 1
    return packed
