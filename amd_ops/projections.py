"""What overlaid forwards call for their projections: q/k/v in one GEMM, gate and up in one GEMM with the activation
behind it.

Nothing is packed under torch.compile or stream capture, and nothing packed is used where autograd wants the weights'
gradients: the stock modules run then, with a counted reason. :func:`prepare` packs a whole model ahead of time and
says what it did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
    state = _state(owner, names)
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


def _state(owner: nn.Module, names: tuple[str, ...]) -> Packed:
    states = owner.__dict__.get(KEY)
    state = states.get(names) if type(states) is States else None
    if state is None or (state.owner and state.owner != id(owner)):
        # New, unpickled, or a shallow copy that carries the original's dict, which must be left alone.
        kept = states if type(states) is States and state is None else States()
        owner.__dict__[KEY] = kept
        state = kept[names] = Packed()
    return state


packed_state = _state
"""The packed group of a module's Linears by their names, for those who pack one module by hand."""


@dataclass(frozen=True)
class Packing:
    """One packed group: the module's path, its Linears, the size of their matrix."""

    module: str
    linears: tuple[str, ...]
    nbytes: int


@dataclass
class Report:
    """What prepare() did. ``bytes_added`` is the growth of the model's unique parameter storage: zero. Shuffled copies
    stand beside it, in ``shuffling``; there are some only with USE_PRESHUFFLE=1.
    """

    fused: list[Packing] = field(default_factory=list)
    declined: list[tuple[str, str]] = field(default_factory=list)
    bytes_added: int = 0
    shuffling: preshuffle.Shuffling = field(default_factory=preshuffle.Shuffling)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "schema": "amd-ops.prepare/1",
            "fused": [{"module": p.module, "linears": list(p.linears), "bytes": p.nbytes} for p in self.fused],
            "declined": [{"module": path, "reason": reason} for path, reason in self.declined],
            "bytes_added": self.bytes_added,
            "shuffled": [{"module": path, "bytes": size} for path, size in self.shuffling.copies],
            "not_shuffled": [{"module": path, "reason": reason} for path, reason in self.shuffling.declined],
            "bytes_of_shuffled_copies": self.shuffling.bytes_added,
        }

    def __str__(self) -> str:
        size = sum(packing.nbytes for packing in self.fused)
        lines = [
            f"fused {len(self.fused)} groups of projections ({size / 2**20:.1f} MiB), {self.bytes_added} bytes added"
        ]
        lines += _by_reason(self.declined, "left {} as they were")
        copies, size = self.shuffling.copies, self.shuffling.bytes_added
        if copies:
            lines.append(f"shuffled copies of {len(copies)} weights, {size} bytes ({size / 2**20:.1f} MiB) added:")
            lines += [f"  {path}: {size} bytes" for path, size in copies]
        lines += _by_reason(self.shuffling.declined, "did not shuffle {}")
        return "\n".join(lines)


def _by_reason(declined: list[tuple[str, str]], text: str) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for path, reason in declined:
        reasons.setdefault(reason, []).append(path)
    return [f"  {text.format(len(paths))}: {reason} ({paths[0]} ...)" for reason, paths in reasons.items()]


def prepare(model: nn.Module, progress: Callable[[str], None] | None = None) -> Report:
    """Pack q/k/v and gate/up of every module of ``model`` that has them, one module at a time, and report.

    Works whatever the toggles say; at most one packed matrix exists beside the originals at any time. ``progress`` is
    called with the path of each module. A group that cannot be packed stays as it is, with the reason in the report.
    """
    report = Report()
    before = unique_bytes(model)
    packed: set[int] = set()
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "experts" and _prepare_experts(path, module, report, progress):
            packed.update(id(expert) for expert in module.children())
        for names in (QKV, *GATE_UP):
            children = module._modules
            if id(module) in packed or not all(children.get(name) is not None for name in names):
                continue
            if progress is not None:
                progress(path)
            state = _state(module, names)
            reason = packing.pack(state, module, names) if state.fresh(module, names) else ""
            if reason:
                report.declined.append((path, reason))
            else:
                report.fused.append(Packing(path, names, state.nbytes()))
    report.bytes_added = unique_bytes(model) - before
    if toggles.settings().use_preshuffle:
        report.shuffling = preshuffle.preshuffle_weights(model)
    return report


def _prepare_experts(path: str, module: nn.Module, report: Report, progress: Callable[[str], None] | None) -> bool:
    """Pack a list of experts whose forward the overlaid text marks; other things of that name are not ours."""
    from . import experts  # needs this module

    if not isinstance(module, nn.ModuleList) or isinstance(experts.names_of(list(module)), str):
        return False
    if progress is not None:
        progress(path)
    with torch.no_grad():
        found = experts.packed_experts(module)
    if isinstance(found, str):
        report.declined.append((path, found))
        return False
    for linears in (experts.GATE_UP, experts.DOWN):
        report.fused.append(Packing(path, linears, module.__dict__[KEY][linears].nbytes()))
    return True


def restore(model: nn.Module) -> None:
    """Give every packed Linear of ``model`` storage of its own again; forget packed matrices and shuffled copies."""
    preshuffle.restore_weights(model)
    for module in model.modules():
        for state in module.__dict__.pop(KEY, {}).values():
            if state.owner == id(module):
                packing.unpack(state)


def unique_bytes(model: nn.Module) -> int:
    """Bytes of all storages behind the model's parameters and buffers, each counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {(t.device, t.untyped_storage()._cdata): t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
    return sum(storages.values())
