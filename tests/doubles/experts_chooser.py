"""A double of ``transformers.integrations.moe`` as transformers 5 has it: a class decorator by which a config chooses
how experts run. It is loaded under that module's name (see :func:`load`) and is never put into ``sys.modules``.

Stricter than the real one: its implementations refuse ids and weights of two shapes, which the real ones broadcast.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def load() -> ModuleType:
    """Execute this file under the name of the module that it stands for, and return the module."""
    spec = importlib.util.spec_from_file_location("transformers.integrations.moe", __file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Choices(dict[str, Callable[..., Tensor]]):
    """The interface: names of implementations, to which a user may add or which he may replace."""

    def get_interface(self, name: str | None, default: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return what ``name`` stands for; the class's own loop for None and ``eager``."""
        if name not in (None, "eager") and name not in self:
            raise KeyError(f"no experts implementation {name!r}")
        return self.get(str(name), default)


def _rows_at_once(self: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    tokens, chosen = ids.shape
    if weights.shape != ids.shape:
        raise ValueError(f"weights {tuple(weights.shape)} for ids {tuple(ids.shape)}")
    rows, flat = hidden.repeat_interleave(chosen, dim=0), ids.reshape(-1)
    both = torch.einsum("sh,sih->si", rows, self.gate_up_proj[flat])
    out = torch.einsum("si,shi->sh", self._apply_gate(both), self.down_proj[flat])
    return (out * weights.reshape(-1, 1)).view(tokens, chosen, hidden.shape[1]).sum(1).to(hidden.dtype)


def batched_mm_experts_forward(self: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Every chosen expert of every token in one batch of products."""
    return _rows_at_once(self, hidden, ids, weights)


def grouped_mm_experts_forward(self: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """As above; the real one sorts by expert first."""
    return _rows_at_once(self, hidden, ids, weights)


def sonicmoe_experts_forward(self: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """A kernel of somebody else."""
    return _rows_at_once(self, hidden, ids, weights)


ALL_EXPERTS_FUNCTIONS = Choices(
    batched_mm=batched_mm_experts_forward,
    grouped_mm=grouped_mm_experts_forward,
    sonicmoe=sonicmoe_experts_forward,
)


def _default_apply_gate(self: Any, both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    result: Tensor = self.act_fn(gate) * up
    return result


def use_experts_implementation(experts_class: Any) -> Any:
    """Wrap the class's constructor and forward, and give it the default gate where it has none."""
    constructor, loop = experts_class.__init__, experts_class.forward

    @wraps(constructor)
    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        constructor(self, config, *args, **kwargs)
        self.config = config
        self._is_expert_parallel = False

    @wraps(loop)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        chosen = ALL_EXPERTS_FUNCTIONS.get_interface(self.config._experts_implementation, loop)
        return chosen(self, *args, **kwargs)

    if not hasattr(experts_class, "_apply_gate"):
        experts_class._apply_gate = _default_apply_gate
    experts_class.__init__, experts_class.forward = __init__, forward
    return experts_class


def loop_over(hidden: Tensor, ids: Tensor, weights: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The shape of every stock loop: ``run(expert, its tokens)`` for each expert that was hit."""
    out = torch.zeros_like(hidden)
    for expert in ids.unique().tolist():
        rows, slots = torch.where(ids == expert)
        out.index_add_(0, rows, (run(expert, hidden[rows]) * weights[rows, slots, None]).to(out.dtype))
    return out


def gated(experts: Any, expert: int, x: Tensor) -> Tensor:
    """One gated expert."""
    gate, up = F.linear(x, experts.gate_up_proj[expert]).chunk(2, dim=-1)
    return F.linear(experts.act_fn(gate) * up, experts.down_proj[expert])
