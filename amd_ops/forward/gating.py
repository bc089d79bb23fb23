"""What an overlaid block calls for what its shared expert adds, or None for stock's own statements."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import modes
from ..dispatch import Site
from ..modules import why_not_plain
from ..ops.gating import add_shared
from ..ops.rope import nobody

_compiling = torch.compiler.is_dynamo_compiling
_site = Site("shared_expert", "taken", nobody)


def shared_expert(experts: Tensor, shared: Tensor, gate: nn.Module, hidden: Tensor) -> Tensor | None:
    """Return experts + sigmoid(gate(hidden)) * shared, experts and shared [T, N], hidden [T, H], or None where stock's
    own statements must run: under autocast, and where the gate is more than a plain Linear of one number.

    Examples:
        >>> rows, gate = torch.tensor([[2.0, 4.0]]), nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.zeros_(gate.weight)
        >>> amd_ops.shared_expert(rows, rows, gate, rows).detach()
        tensor([[3., 6.]])
    """
    if _compiling():
        return None
    reason = why_not_plain(gate) or modes.hidden() or _unusual(experts, shared, gate, hidden)
    if reason:
        _site.declined(reason)
        return None
    _site.fast.calls += 1
    weight = gate.weight
    assert isinstance(weight, Tensor)
    return add_shared(experts, shared, hidden, weight)


def _unusual(experts: Tensor, shared: Tensor, gate: nn.Module, hidden: Tensor) -> str:
    """Return "" for the shapes of ``add_shared``; the gate is a Linear."""
    if gate.bias is not None or gate.weight.shape != (1, hidden.shape[-1]):
        return "the shared expert's gate has a bias, or more than one number"
    if experts.dim() != 2 or shared.shape != experts.shape or hidden.dim() != 2 or len(hidden) != len(experts):
        return "the experts' outputs are not [T, N]"
    if torch.is_autocast_enabled(hidden.device.type):
        return "autocast chooses the dtype of the gate"
    return ""
