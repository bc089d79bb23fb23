"""Formulas in fp64, written without amd_ops: what every tier is compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def close(got: Tensor, want: Tensor, factor: float = 1.0) -> None:
    """Compare with an fp64 reference: relative to each element, with a floor relative to the largest one."""
    assert got.shape == want.shape
    tolerance = TOLERANCE[got.dtype] * factor
    peak = float(want.abs().max()) if want.numel() else 0.0
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * max(peak, 1e-3))


def rms_norm(x: Tensor, weight: Tensor, eps: float, form: str) -> Tensor:
    x64, w64 = x.double(), weight.double()
    normed = x64 / torch.sqrt(x64.square().mean(-1, keepdim=True) + eps)
    return normed * (1.0 + w64 if form == "gemma" else w64)


def gated(x: Tensor, kind: str) -> Tensor:
    gate, up = x.double().chunk(2, -1)
    if kind == "silu":
        return gate / (1.0 + torch.exp(-gate)) * up
    if kind == "gelu":
        return gate * 0.5 * (1.0 + torch.erf(gate / math.sqrt(2.0))) * up
    return gate * 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3))) * up


def rope(x: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> Tensor:
    """Pair by pair: dimension i and i + R/2 turn together, the rest passes."""
    cos, sin = cos.double().unsqueeze(unsqueeze_dim), sin.double().unsqueeze(unsqueeze_dim)
    half = cos.shape[-1] // 2
    out = x.double().clone()
    a, b = x.double()[..., :half], x.double()[..., half : 2 * half]
    out[..., :half] = a * cos[..., :half] - b * sin[..., :half]
    out[..., half : 2 * half] = b * cos[..., half:] + a * sin[..., half:]
    return out


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None = None,
    is_causal: bool = True,
    attention_mask: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """[B, Sq, H, D] query by query: each looks at the list of keys that it may see."""
    batch, rows, heads, size = query.shape
    columns, kv_heads = key.shape[1:3]
    out = torch.zeros(batch, rows, heads, value.shape[-1], dtype=torch.float64)
    bias = None if attention_mask is None else attention_mask.expand(batch, heads, rows, columns)
    for b in range(batch):
        for row in range(rows):
            own = row + columns - rows
            keys = [
                j
                for j in range(columns)
                if not (is_causal and j > own) and not (sliding_window is not None and j <= own - sliding_window)
            ]
            for head in range(heads):
                kv = head // (heads // kv_heads)
                seen = keys
                if bias is not None and bias.dtype == torch.bool:
                    seen = [j for j in keys if bool(bias[b, head, row, j])]
                if not seen:
                    continue
                factor = size**-0.5 if scaling is None else scaling
                scores = key[b, seen, kv].double() @ query[b, row, head].double() * factor
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if bias is not None and bias.dtype != torch.bool:
                    scores = scores + bias[b, head, row, seen].double()
                peak = scores.max()
                weights = torch.exp(scores - peak)
                total = weights.sum()
                if sinks is not None:
                    total = total + torch.exp(sinks[head].double() - peak)
                out[b, row, head] = (weights / total) @ value[b, seen, kv].double()
    return out
