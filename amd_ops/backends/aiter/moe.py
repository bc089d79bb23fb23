"""A block of experts in one call.

``fused_moe`` wants the experts' weights in the shuffled layout; before v0.1.10.post2 it takes them as shuffled whatever
they are, and no signature tells which versions look at the mark. So it only ever gets shuffled, marked copies: they
cost the experts' bytes once more, and exist only where USE_PRESHUFFLE asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ... import toggles
from ...dispatch import Candidate
from .. import Unusable, shuffled
from ..probing import apart, disagreement, made_up, unusable
from .library import HALF, expect, function_of, module_of

UNFROZEN = "no shuffled copies of the experts are kept: prepare(model) makes them and freezes the experts"
_ACTIVATIONS = {"silu": "Silu", "gelu": "Gelu"}
_SINCE = "expert_mask", "activation", "quant_type", "doweight_stage1"


def make(reference: Callable[..., Any], kind: str) -> Candidate:
    """``fused_moe(hidden_states, w1, w2, topk_weight, topk_ids, ..., activation, quant_type)``; its tail grows with
    every version: keywords only.

    Contract of the op: hidden [T, H], w1 [E, 2I, H] (gate, then up), w2 [E, H, I], topk_weight [T, k], topk_ids [T, k]
    (the function wants fp32 and int32), activation ``silu`` or ``gelu`` -> [T, H] in hidden's dtype.
    """
    function, names = function_of("fused_moe", "aiter.fused_moe")
    expect("fused_moe", names, ("hidden_states", "w1", "w2", "topk_weight", "topk_ids"), *_SINCE)
    kinds, quantisations = (getattr(module_of("aiter"), name, None) for name in ("ActivationType", "QuantType"))
    if kinds is None or quantisations is None:
        raise Unusable("this aiter has no ActivationType or QuantType")
    plain = quantisations.No

    def check(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weight: Tensor, topk_ids: Tensor, activation: str) -> str:
        settings = toggles.settings()
        if not settings.use_preshuffle or settings.preshuffle_m_thresh < 0:
            return "aiter's experts want shuffled weights, which USE_PRESHUFFLE=1 keeps beside the plain ones"
        if activation not in _ACTIVATIONS or not hasattr(kinds, _ACTIVATIONS[activation]):
            return f"activation {activation!r} is neither silu nor gelu"
        return (
            _misfit(hidden, w1, w2, topk_weight, topk_ids)
            or unusable(kind, hidden, w1, w2, topk_weight, topk_ids)
            or ("" if shuffled.find(w1) is not None and shuffled.find(w2) is not None else UNFROZEN)
        )

    def run(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weight: Tensor, topk_ids: Tensor, activation: str) -> Tensor:
        first, second = shuffled.find(w1), shuffled.find(w2)
        assert first is not None
        assert second is not None
        out: Tensor = function(
            hidden.contiguous(),
            first.tagged(),
            second.tagged(),
            topk_weight.float().contiguous(),
            topk_ids.to(torch.int32).contiguous(),
            activation=getattr(kinds, _ACTIVATIONS[activation]),
            quant_type=plain,
            doweight_stage1=False,
        )
        return out

    def variant(hidden: Tensor, w1: Tensor, w2: Tensor, _: Tensor, topk_ids: Tensor, activation: str) -> Hashable:
        return hidden.dtype, w1.shape, w2.shape, topk_ids.shape[1], hidden.shape[0].bit_length(), activation

    def compare(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weight: Tensor, ids: Tensor, activation: str) -> str:
        tokens, where = hidden.shape[0], hidden.device
        sample = made_up(tuple(hidden.shape), hidden.dtype, where, 17)
        chosen = torch.arange(tokens, device=where).unsqueeze(1) * 3 + torch.arange(ids.shape[1], device=where)
        chosen = (chosen % w1.shape[0]).to(torch.int32)
        shares = made_up(tuple(topk_weight.shape), torch.float32, where, 18).abs() + 0.1
        call = (sample, w1, w2, shares, chosen, activation)
        return disagreement(run(*call), reference(sample.float(), w1.float(), w2.float(), shares, chosen, activation))

    return Candidate(run, check, variant, apart(compare))


def _misfit(hidden: Tensor, w1: Tensor, w2: Tensor, topk_weight: Tensor, topk_ids: Tensor) -> str:
    """Shapes and dtypes; the kernels trust them."""
    if hidden.dtype not in HALF or w1.dtype is not hidden.dtype or w2.dtype is not hidden.dtype:
        return f"{hidden.dtype} is neither fp16 nor bf16, or the weights are of another dtype"
    if hidden.dim() != 2 or w1.dim() != 3 or w2.dim() != 3 or topk_ids.dim() != 2:
        return "the shapes are not [T, H], [E, 2I, H], [E, H, I] and [T, k]"
    experts, width = w1.shape[0], w2.shape[2]
    if w1.shape != (experts, 2 * width, hidden.shape[1]) or w2.shape != (experts, hidden.shape[1], width):
        return "the weights' shapes do not fit each other or the input"
    if topk_weight.dtype not in (torch.float32, hidden.dtype) or topk_ids.dtype not in (torch.int32, torch.int64):
        return "topk_weight is not fp32 or of hidden's dtype, or topk_ids not int32 or int64"
    if topk_ids.shape[0] != hidden.shape[0] or topk_weight.shape != topk_ids.shape or topk_ids.shape[1] > experts:
        return "topk_weight and topk_ids are not [T, k] with k experts at most"
    return ""
