"""``fused_moe``: every token through its experts, weighted and summed; weights in the shuffled layout only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..catalog import ENUMS
from ..rounding import narrowed
from ..state import Double
from . import gemm, guards

_CHECKED = ("hidden_states", "w1", "w2", "topk_weight", "topk_ids", "activation", "quant_type")


def fused_moe(double: Double, name: str, arguments: dict[str, Any]) -> Tensor:
    """hidden [T,H], w1 [E,2I,H] gate then up, w2 [E,H,I], topk_weight fp32 [T,k], topk_ids int32 [T,k] -> [T,H]."""
    hidden, w1, w2, share, ids = (arguments[key] for key in _CHECKED[:5])
    guards.half(double, name, hidden_states=hidden, w1=w1, w2=w2)
    guards.contiguous(double, name, hidden_states=hidden, w1=w1, w2=w2, topk_weight=share, topk_ids=ids)
    guards.not_empty(double, name, hidden_states=hidden, w1=w1, w2=w2, topk_ids=ids)
    double.require(hidden.dim() == 2 and w2.dim() == 3, f"{name}: hidden_states is not [T,H] or w2 not [E,H,I]")
    experts, width = w2.shape[0], w2.shape[2]
    guards.shape(double, name, "w1", w1, (experts, 2 * width, hidden.shape[1]))
    guards.shape(double, name, "w2", w2, (experts, hidden.shape[1], width))
    double.require(ids.dtype == torch.int32 and share.dtype == torch.float32, f"{name}: {ids.dtype}, {share.dtype}")
    guards.shape(double, name, "topk_weight", share, tuple(ids.shape))
    double.require(ids.shape[0] == hidden.shape[0], f"{name}: {ids.shape[0]} choices for {hidden.shape[0]} tokens")
    double.require(int(ids.min()) >= 0 and int(ids.max()) < experts, f"{name}: an id is outside 0..{experts - 1}")
    _options(double, name, arguments)
    for key, weight in (("w1", w1), ("w2", w2)):
        shuffled = gemm.is_shuffled(double, name, key, weight)
        double.require(shuffled, f"{name}: {key} is in plain layout: the kernels read the shuffled one")
    plain = [gemm.unshuffle_16x16(weight).float() for weight in (w1, w2)]
    activate = functional.silu if arguments["activation"] is ENUMS["ActivationType"].Silu else functional.gelu
    out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for token in range(hidden.shape[0]):
        for expert, part in zip(ids[token].tolist(), share[token].tolist(), strict=True):
            gate, up = (plain[0][expert] @ hidden[token].float()).chunk(2)
            out[token] += part * (plain[1][expert] @ (activate(gate) * up))
    return narrowed(out, hidden.dtype, double.arch, "moe")


def _options(double: Double, name: str, arguments: dict[str, Any]) -> None:
    """Enum members are asked for their value: plain numbers fail. What is not modelled stays at its default."""
    kinds, quantisations = ENUMS["ActivationType"], ENUMS["QuantType"]
    activation = arguments["activation"]
    double.require(activation in (kinds.Silu, kinds.Gelu), f"{name}: activation {activation!r} is not modelled")
    double.require(arguments["quant_type"] is quantisations.No, f"{name}: quant_type {arguments['quant_type']!r}")
    rest = {key: item for key, item in arguments.items() if key not in _CHECKED}
    for key, item in rest.items():
        neutral = item in (None, False, 0, 0.0, "separated") or (key == "shared_expert_id" and item == -1)
        double.require(neutral, f"{name}: {key}={item!r} is not modelled by the double")
