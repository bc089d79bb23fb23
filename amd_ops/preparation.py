"""Packing a whole model ahead of time, and the way back: every q/k/v, gate and up, and list of experts it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from . import toggles
from .forward import experts
from .forward.projections import GATE_UP, LOW_RANK, QKV
from .weights import packing, preshuffle
from .weights.packing import KEY


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
    """Pack q/k/v, latent attention's projections down and gate/up of every module of ``model`` that has them,
    one module at a time, and report.

    Works whatever the toggles say; at most one packed matrix exists beside the originals at any time. ``progress`` is
    called with the path of each module. A group that cannot be packed stays as it is, with the reason in the report.

    Examples:
        >>> attn = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "k_proj": nn.Linear(8, 4), "v_proj": nn.Linear(8, 4)})
        >>> amd_ops.prepare(attn).bytes_added
        0
    """
    report = Report()
    before = unique_bytes(model)
    together: set[int] = set()
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "experts" and _prepare_experts(path, module, report, progress):
            together.update(id(expert) for expert in module.children())
        for names in (QKV, LOW_RANK, *GATE_UP):
            children = module._modules
            if id(module) in together or not all(children.get(name) is not None for name in names):
                continue
            if progress is not None:
                progress(path)
            packed = packing.pack(module, names)
            if isinstance(packed, str):
                report.declined.append((path, packed))
            else:
                report.fused.append(Packing(path, names, packed.nbytes()))
    report.bytes_added = unique_bytes(model) - before
    if toggles.settings().use_preshuffle:
        report.shuffling = preshuffle.preshuffle_weights(model)
    return report


def _prepare_experts(path: str, module: nn.Module, report: Report, progress: Callable[[str], None] | None) -> bool:
    """Pack a list of experts whose forward the overlaid text marks; other things of that name are not ours."""
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
    """Give every packed Linear of ``model`` storage of its own again; forget packed matrices and shuffled copies.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> _ = amd_ops.prepare(model)
        >>> amd_ops.restore(model)
    """
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
