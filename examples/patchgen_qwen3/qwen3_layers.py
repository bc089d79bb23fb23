"""Layers that the generated Qwen3 file imports instead of carrying their source."""

from __future__ import annotations

import torch
from torch import nn

import amd_ops


class SwiGLUMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))`` with the product in one kernel. Parameter names are those of Qwen3MLP."""

    def __init__(self, config) -> None:
        super().__init__()
        if config.hidden_act != "silu":
            raise ValueError(f"SwiGLUMLP computes silu, this model has hidden_act={config.hidden_act!r}")
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [..., hidden_size] of x [..., hidden_size]."""
        return self.down_proj(amd_ops.silu_and_mul(torch.cat((self.gate_proj(x), self.up_proj(x)), dim=-1)))
