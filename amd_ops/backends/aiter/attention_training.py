"""Attention with gradients, through aiter's own autograd functions.

Facts of v0.1.5 to v0.1.22: with a gradient needed they want ``return_lse``; their backward knows neither a soft cap nor
sinks (it returns wrong gradients, or none, without a word), takes a window of one key for none in its assembly kernels,
and has no backward of its own. Dense calls are deterministic unless told otherwise, packed ones are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backward import final

NAMES = ("return_lse", "deterministic")
"""Arguments without which a gradient cannot be asked for."""
_CK_ROWS = 16
"""Up to so many rows of a dense call aiter never takes an assembly backward."""
_ONE_BLOCK = 256
"""Up to so many keys gfx950's assembly backward needs one block, and is taken for deterministic calls, too."""
SCALING = 0.75
"""Of a probe, in units of the usual one: where one key takes all the weight, gradients are nothing but rounding."""
_WHOSE = "attention in tier aiter"


def without_backward(softcap: float | None, sinks: Tensor | None) -> str:
    """Say what aiter's backward does not know about, "" where nothing is."""
    if softcap is not None:
        return "a gradient is needed and aiter's backward has no soft cap"
    return "" if sinks is None else "a gradient is needed and aiter's backward has none of sinks"


def unsafe(rows: int, columns: int, causal: bool, window: int | None) -> str:
    """Say for which spans of keys aiter's backward cannot be trusted, "" for the others."""
    if window == 1:
        return "a gradient is needed and aiter's backward takes a window of one key for none"
    if causal and rows > columns:
        return "a gradient is needed and some queries see no key: aiter's backward divides by their empty sum"
    return ""


def kernel(q: Tensor, k: Tensor, v: Tensor, packed: bool, rows: int, columns: int) -> tuple[Any, ...]:
    """What chooses among the kernels of aiter's backward, for a call [B, H, S, D] of ``rows`` that see ``columns``."""
    deterministic, same = torch.are_deterministic_algorithms_enabled(), rows == columns
    if packed:
        return deterministic, same
    lengths = rows <= _CK_ROWS, same, same and rows % 64 == 0, columns <= _ONE_BLOCK
    return deterministic, *lengths, *(_layout(x) for x in (q, k, v))


def _layout(x: Tensor) -> tuple[bool, bool]:
    """(heads outside of tokens, without gaps) of the memory of [B, H, S, D]."""
    heads_first = x.stride(1) > x.stride(2)
    return heads_first, x.is_contiguous() if heads_first else x.transpose(1, 2).is_contiguous()


def laid_out(sample: Tensor, like: Tensor) -> Tensor:
    """Return [B, H, S, D] data in memory of the layout of ``like``."""
    heads_first, dense = _layout(like)
    inner = sample if heads_first else sample.transpose(1, 2)
    if not dense:
        inner = torch.cat((inner, torch.zeros_like(inner)), dim=2)[:, :, : inner.shape[2]]
    else:
        inner = inner.contiguous()
    return inner if heads_first else inner.transpose(1, 2)


def small(rows: int, columns: int) -> tuple[int, int]:
    """Small (rows, columns) for a probe that takes the same kernels forward and backward."""
    same, whole, short = rows == columns, rows == columns and rows % 64 == 0, columns <= _ONE_BLOCK
    if rows <= _CK_ROWS:
        few = 1 if rows == 1 else 9
        return few, few if same else few + 24 if short else _ONE_BLOCK + 24
    if rows <= 128:
        few = 64 if whole else 40
        return few, few if same else few + 24 if short else _ONE_BLOCK + 24
    if same:
        many = (192 if short else 320) if whole else 135 if short else _ONE_BLOCK + 7
        return many, many
    return 135, 159 if short else _ONE_BLOCK + 24


def attended(function: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
    """Call an attention function of aiter so that autograd records it.

    q, k, v are views or copies of the caller's own, and get hooks. The gradient of the result reaches the kernel
    without gaps: its memory takes part in the choice of the kernel, which the probe has settled.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    out: Tensor = function(q, k, v, return_lse=True, deterministic=deterministic, **options)[0]
    if not out.requires_grad:
        raise RuntimeError("aiter's result carries no gradient")
    out.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
    for x in (q, k, v):
        if x.requires_grad:
            x.register_hook(_final)  # type: ignore[no-untyped-call]
    return out


def _final(gradient: Tensor) -> Tensor | None:
    return final(_WHOSE, gradient)[0] if torch.is_grad_enabled() else None


class _Gathered(torch.autograd.Function):
    """Rows picked at places that differ from one another: their gradients are put back, nothing is added up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *at: Tensor) -> Tensor:
        ctx.at, ctx.shape = at, x.shape
        return x[at]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        whole = gradient.new_zeros(ctx.shape)
        whole[ctx.at] = gradient
        return whole, *(None for _ in ctx.at)


def gathered(x: Tensor, at: tuple[Tensor, ...]) -> Tensor:
    """``x[at]``, where ``at`` names no place twice."""
    taken: Tensor = _Gathered.apply(x, *at) if x.requires_grad else x[at]  # type: ignore[no-untyped-call]
    return taken
