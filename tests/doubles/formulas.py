"""Reference formulas in float64, written element by element; shared by the tests of the double and of tier aiter.

They share no code with the double: a mistake in one shows against the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    *,
    causal: bool = True,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """fp64 [B,Sq,H,D]: q [B,Sq,H,D], k/v [B,Sk,Hkv,D]; causal to the bottom right; ``window`` counts the key itself.

    ``keep`` is a bool [B,Sk] padding mask. Rows that see no key are 0.
    """
    batch, rows, heads, size = q.shape
    columns, groups = k.shape[1], heads // k.shape[2]
    scale = 1.0 / math.sqrt(size) if scale is None else scale
    out = torch.zeros(batch, rows, heads, v.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for i in range(rows):
            last = i + columns - rows
            seen = torch.ones(columns, dtype=torch.bool) if keep is None else keep[b].clone().cpu()
            position = torch.arange(columns)
            if causal:
                seen &= position <= last
            if window is not None:
                seen &= position > last - window
            if not bool(seen.any()):
                continue
            for h in range(heads):
                out[b, i, h] = _row(
                    q[b, i, h],
                    k[b, seen, h // groups],
                    v[b, seen, h // groups],
                    scale,
                    soft_cap,
                    None if sinks is None else float(sinks[h]),
                )
    return out


def _row(q: Tensor, k: Tensor, v: Tensor, scale: float, soft_cap: float | None, sink: float | None) -> Tensor:
    scores = (k.double() @ q.double()) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    weights = torch.exp(scores)
    total = weights.sum() + (0.0 if sink is None else math.exp(sink))
    return (weights / total) @ v.double()


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, gemma: bool = False) -> Tensor:
    data = x.double()
    scale = weight.double() + (1.0 if gemma else 0.0)
    return data / torch.sqrt((data * data).mean(-1, keepdim=True) + eps) * scale


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = x.double() @ weight.double().t()
    return result if bias is None else result + bias.double()


def gated(x: Tensor, activation: str) -> Tensor:
    """``activation(first half) * second half``; activation silu, gelu or gelu_tanh."""
    gate, up = x.double().chunk(2, -1)
    if activation == "silu":
        return gate / (1.0 + torch.exp(-gate)) * up
    if activation == "gelu":
        return 0.5 * gate * (1.0 + torch.erf(gate / math.sqrt(2.0))) * up
    inner = math.sqrt(2.0 / math.pi) * (gate + 0.044715 * gate**3)
    return 0.5 * gate * (1.0 + torch.tanh(inner)) * up


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """rotate_half on the first R values: x [..., D], cos/sin [..., R] broadcastable."""
    width = cos.shape[-1]
    data, c, s = x.double(), cos.double(), sin.double()
    part = data[..., :width]
    turned = torch.cat((-part[..., width // 2 :], part[..., : width // 2]), -1)
    result = data.clone()
    result[..., :width] = part * c + turned * s
    return result


def rope_tables(positions: Tensor, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """HF tables [*positions.shape, width], the two halves equal."""
    inverse = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = positions.double()[..., None] * inverse
    angles = torch.cat((angles, angles), -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def close(actual: Tensor, expected: Tensor, ulps: float = 2.0) -> None:
    """``actual`` is within ``ulps`` roundings of its own dtype of ``expected`` (float64)."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    eps = torch.finfo(actual.dtype).eps
    error = (actual.double().cpu() - expected.cpu()).abs()
    assert bool(torch.isfinite(error).all()), "not finite"
    allowed = ulps * eps * expected.cpu().abs() + ulps * eps * 0.25 * float(expected.abs().max())
    worst = float((error / allowed.clamp_min(1e-30)).max()) if error.numel() else 0.0
    assert worst <= 1.0, (
        f"off by {worst:.2f} times the allowed {ulps} roundings (largest error {float(error.max()):.3e})"
    )
