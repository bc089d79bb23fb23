"""Our ops as ready kernels: stateless layer classes to bind by name, and the callables that rewritten forwards use.

The classes are registered as ``amd_ops.RMSNorm``, ``amd_ops.GemmaRMSNorm``, ``amd_ops.SiluAndMul``,
``amd_ops.GeluAndMul``, ``amd_ops.GatedMLP`` and ``amd_ops.RotaryEmbedding``; the local kernel repository beside this
file exports the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import amd_ops

from ..modules import attention_is_torchs, original
from .registry import LayerKernel, Registry
from .rotary import Rotary
from .sources import ObjectSource

NAMESPACE = "amd_ops."


class RMSNorm(nn.Module):
    """Llama's form: reads ``weight`` and ``variance_epsilon`` (or ``eps``) of the module it replaces. x [..., D]."""

    can_torch_compile = True
    weight: Tensor

    def forward(self, hidden_states: Tensor) -> Tensor:
        state = self.__dict__
        eps = state["variance_epsilon"] if "variance_epsilon" in state else state["eps"]
        return op("rms_norm")(hidden_states, self.weight, eps)  # type: ignore[no-any-return]


class GemmaRMSNorm(nn.Module):
    """Gemma's form, with 1 + weight; reads ``weight`` and ``eps``. x [..., D]."""

    can_torch_compile = True
    weight: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        return op("rms_norm")(x, self.weight, self.eps, form="gemma")  # type: ignore[no-any-return]


class SiluAndMul(nn.Module):
    """silu of the first half times the second: [..., 2d] -> [..., d]."""

    can_torch_compile = True

    def forward(self, x: Tensor) -> Tensor:
        return op("silu_and_mul")(x)  # type: ignore[no-any-return]


class GeluAndMul(nn.Module):
    """gelu of the first half times the second: [..., 2d] -> [..., d]."""

    can_torch_compile = True

    def forward(self, x: Tensor) -> Tensor:
        return op("gelu_and_mul")(x)  # type: ignore[no-any-return]


class GatedMLP(nn.Module):
    """``down_proj(act_fn(gate_proj(x)) * up_proj(x))`` of the module it replaces. x [..., D]."""

    can_torch_compile = True

    def forward(self, x: Tensor) -> Tensor:
        return op("gated_mlp")(self, x)  # type: ignore[no-any-return]


class RotaryEmbedding(nn.Module):
    """q and k rotated by cos and sin, in the rotate-half layout."""

    can_torch_compile = True

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        return op("apply_rope")(q, k, cos, sin, unsqueeze_dim)  # type: ignore[no-any-return]


LAYERS: tuple[type[nn.Module], ...] = (RMSNorm, GemmaRMSNorm, SiluAndMul, GeluAndMul, GatedMLP, RotaryEmbedding)


def op(name: str) -> Callable[..., Any]:
    """Return one of amd_ops' public functions. Looked up when used: amd_ops imports this package while it is being
    imported.
    """
    found: Callable[..., Any] = getattr(amd_ops, name)
    return found


def add_to(registry: Registry) -> None:
    """Register the ready layer kernels, for every device and mode."""
    for layer in LAYERS:
        registry.add_layer(LayerKernel(NAMESPACE + layer.__name__, ObjectSource(layer), None, None))


def qkv(names: tuple[str, str, str]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the fused call and the three plain calls for projections of these names: (module, h) -> (q, k, v)."""
    fused = op("qkv_proj")
    first, second, third = names

    def fast(module: nn.Module, hidden: Tensor) -> Any:
        return fused(module, hidden, names)

    def original(module: nn.Module, hidden: Tensor) -> Any:
        return getattr(module, first)(hidden), getattr(module, second)(hidden), getattr(module, third)(hidden)

    return fast, original


def rope(function: Callable[..., Any], how: Rotary) -> Callable[..., Any]:
    """Return a function with the rotary function's arguments; calls with unusual ones go to that function."""
    apply = op("apply_rope")
    dim, flat = how.dim, how.flat

    def fast(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any) -> Any:
        if rest or (named and (flat or named.keys() != {"unsqueeze_dim"})):
            return function(q, k, cos, sin, *rest, **named)
        if flat:
            return apply(q, k, cos[None], sin[None], dim) if cos.dim() == 2 else function(q, k, cos, sin)
        return (
            apply(q, k, cos, sin, named.get("unsqueeze_dim", dim))
            if cos.dim() == 3
            else function(q, k, cos, sin, **named)
        )

    return fast


def still(function: Any) -> Callable[[Any], bool]:
    """Return what tells whether a function is the one that was looked at, its helpers included where that can be
    known.
    """
    known = original(function, function.__name__)

    def same(now: Any) -> bool:
        return now is function and (not known or original(function, function.__name__))

    same._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return same


def _torchs_attention() -> bool:
    return attention_is_torchs()


_torchs_attention._dynamo_marked_constant = True  # type: ignore[attr-defined]


def sdpa() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return our attention with torch's SDPA signature, and SDPA itself.

    SDPA counts causality from the first key, ours from the last: calls where that differs, with dropout, or with
    tensors that are not [B, H, S, D] stay with SDPA.
    """
    attention = op("attention")

    def stock(*args: Any, **kwargs: Any) -> Tensor:
        return F.scaled_dot_product_attention(*args, **kwargs)

    def fast(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        fits = query.dim() == key.dim() == value.dim() == 4 and (enable_gqa or query.shape[1] == key.shape[1])
        uneven = is_causal and query.shape[2] != key.shape[2]
        if dropout_p or not fits or uneven or not _torchs_attention():
            return stock(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        turned = (t.transpose(1, 2) for t in (query, key, value))
        out: Tensor = attention(*turned, scaling=scale, is_causal=is_causal, attention_mask=attn_mask)
        return out.transpose(1, 2)

    return fast, stock
