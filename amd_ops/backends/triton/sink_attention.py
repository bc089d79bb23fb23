"""sink_attention on the kernel of kernels/sink_attention.py, one launch. Inference only; its cut is not timed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..probing import disagreement, misplaced, needs_grad, noise
from .common import unfit
from .configs import waves
from .experts import GRADIENT
from .kernels import sink_attention as kernels
from .layout import Via, directly, power_of_two, reach, specialised, unreachable
from .target import Target

_ELEMENTS = 4096
_WIDEST = 256


def _mask_kind(mask: Tensor | None) -> str:
    return "" if mask is None else "bool" if mask.dtype is torch.bool else "add"


def launch_sink_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    scaling: float | None,
    mask: Tensor | None,
    *,
    wave: int,
    via: Via = directly,
) -> Tensor:
    """[B, 1, H, Dv], dense."""
    batch, heads, _, size = q.shape
    columns, value_size = k.shape[2], v.shape[3]
    out = q.new_empty((batch, 1, heads, value_size))
    seen, strides = sinks, (0, 0, 0)
    if mask is not None:
        seen = mask.view(torch.uint8) if mask.dtype is torch.bool else mask
        strides = tuple(0 if mask.shape[at] == 1 else mask.stride(at) for at in (0, 1, 3))  # type: ignore[assignment]
    widest = power_of_two(max(size, value_size))
    rows = max(_ELEMENTS // widest, 1)
    via(kernels.sink_attention)[(batch, heads)](
        q, k, v, sinks, seen, out, size**-0.5 if scaling is None else scaling, columns,
        *q.stride()[:2], *k.stride()[:3], *v.stride()[:3], *strides,
        H=heads, GROUPS=heads // k.shape[1], D=size, DV=value_size, MASK=_mask_kind(mask),
        BLOCK_N=rows, BLOCK_D=power_of_two(size), BLOCK_V=power_of_two(value_size),
        num_warps=waves(rows * widest, wave),
    )  # fmt: skip
    return out


def _unfit_mask(target: Target, mask: Tensor, q: Tensor, k: Tensor) -> str:
    reason = misplaced(target.type, mask) or ("" if mask.dtype is torch.bool else unreachable(mask))
    if reason:
        return reason
    if mask.dtype is not torch.bool and mask.dtype is not q.dtype:
        return f"the mask is {mask.dtype}, neither bool nor the queries' dtype"
    fits = mask.dim() == 4 and mask.shape[2] == 1 and mask.shape[3] >= k.shape[2]
    if not fits or mask.shape[0] not in (1, q.shape[0]) or mask.shape[1] not in (1, q.shape[1]):
        return "the mask is not [B or 1, H or 1, 1, Sk]"
    return "" if reach(mask) < 1 << 31 else "a tensor is too large for 32-bit indexing"


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of sink_attention."""

    def check(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, scaling: float | None, mask: Tensor | None) -> str:
        if needs_grad(q, k, v, sinks):
            return GRADIENT
        if not q.dim() == k.dim() == v.dim() == 4 or q.shape[2] != 1:
            return "not one query per sequence"
        batch, heads, _, size = q.shape
        if k.shape[0] != batch or k.shape[3] != size or v.shape[:3] != k.shape[:3] or heads % max(k.shape[1], 1):
            return "the shapes of q, k and v do not fit each other"
        if sinks.shape != (heads,) or sinks.stride(0) != 1:
            return "the sinks are not one dense number per head"
        if k.dtype is not q.dtype or v.dtype is not q.dtype:
            return "q, k and v differ in dtype"
        if max(size, v.shape[3]) > _WIDEST or q.stride(3) != 1 or k.stride(3) != 1 or v.stride(3) != 1:
            return f"heads are wider than {_WIDEST}, or their last dimension is not dense"
        if torch.is_autocast_enabled(target.type):
            return "autocast chooses the dtype of the products"
        return unfit(target, q, k, v, sinks) or ("" if mask is None else _unfit_mask(target, mask, q, k))

    def run(*args: Any) -> Tensor:
        return launch_sink_attention(*args, wave=target.wave)

    def variant(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, scaling: float | None, mask: Tensor | None) -> Hashable:
        strides = specialised((q.stride(0), q.stride(1), *k.stride()[:3], *v.stride()[:3]))
        groups = q.shape[1] // k.shape[1]
        return q.dtype, sinks.dtype, q.shape[1], groups, q.shape[3], v.shape[3], _mask_kind(mask), strides

    def probe(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, scaling: float | None, mask: Tensor | None) -> str:
        """Scores of about unit size whatever the scale is, and keys that fill no whole block."""
        heads, kv_heads, where = q.shape[1], k.shape[1], q.device
        columns = 37
        with torch.inference_mode():
            sizes = ((2, heads, 1, q.shape[3]), (2, kv_heads, columns, k.shape[3]), (2, kv_heads, columns, v.shape[3]))
            a, b, c = (noise(size, q.dtype, where, seed) for seed, size in enumerate(sizes, 30))
            if scaling:
                a = a * (q.shape[3] ** -0.5 / abs(scaling))
            logits = noise((heads,), sinks.dtype, where, 33)
            hidden = None
            if mask is not None:
                hidden = (torch.arange(columns, device=where) % 3 != 0).view(1, 1, 1, columns)
                if mask.dtype is not torch.bool:
                    hidden = torch.zeros(hidden.shape, dtype=q.dtype, device=where).masked_fill(~hidden, -9.0)
            got = run(a, b, c, logits, scaling, hidden)
            exact = [one.float() for one in (a, b, c, logits)]
            plain = hidden if hidden is None or hidden.dtype is torch.bool else hidden.float()
            return disagreement(got, reference(*exact, scaling, plain))

    return Candidate(run, check, variant, probe)
