"""Attention kernels of the double: CK ``mha_fwd``/``mha_varlen_fwd`` and the ASM ``fmha_v3_*`` pair.

Layout [B, S, H, D] (varlen [total, H, D]); causal and windows are aligned to the bottom right corner; rows that see
no key give 0. Everything is computed in fp32 and brought to 16 bits once.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ..rounding import narrowed
from ..state import ASM_ARCHES, Double
from . import guards

Result = tuple[Tensor, Tensor, Tensor, Tensor]
Window = tuple[int, int, int]  # left, right, number of leading tokens that stay visible


def visible(rows: int, columns: int, causal: bool, window: Window) -> Tensor:
    """Bool [rows, columns]: which keys each query sees."""
    left, right, sink = window
    row = torch.arange(rows)[:, None] + (columns - rows)
    column = torch.arange(columns)[None, :]
    if causal:
        right = 0
    mask = torch.ones(rows, columns, dtype=torch.bool)
    if right >= 0:
        mask &= column <= row + right
    if left >= 0:
        mask &= (column >= row - left) | (column < sink)
    return mask


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor, soft_cap: float = 0.0, sinks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """fp32 attention of one group: q [Sq,H,D], k/v [Sk,Hkv,D] -> out fp32 [Sq,H,Dv], lse [H,Sq]."""
    groups = q.shape[1] // k.shape[1]
    query = q.float().transpose(0, 1)
    key = k.float().transpose(0, 1).repeat_interleave(groups, 0)
    value = v.float().transpose(0, 1).repeat_interleave(groups, 0)
    scores = torch.matmul(query, key.transpose(1, 2)) * scale
    if soft_cap > 0.0:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
        scores = torch.cat([scores, column], dim=-1)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    return torch.matmul(weights[..., : k.shape[0]], value).transpose(0, 1), lse


def _common(double: Double, name: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    guards.half(double, name, q=q, k=k, v=v)
    guards.not_empty(double, name, q=q, k=k, v=v)
    for argument, tensor in (("q", q), ("k", k), ("v", v)):
        size = tensor.shape[-1]
        double.require(tensor.stride(-1) == 1, f"{name}: {argument} has last-dim stride {tensor.stride(-1)}, not 1")
        double.require(size % 8 == 0, f"{name}: head_dim {size} of {argument} is no multiple of 8")
        double.require(size <= 256, f"{name}: head_dim {size} of {argument} is above 256")
    double.require(q.shape[-1] == k.shape[-1], f"{name}: head_dim of q {q.shape[-1]} and k {k.shape[-1]} differ")
    heads, kv_heads = q.shape[-2], k.shape[-2]
    double.require(v.shape[-2] == kv_heads, f"{name}: k has {kv_heads} heads, v {v.shape[-2]}")
    double.require(heads % kv_heads == 0, f"{name}: {heads} query heads are not divisible by {kv_heads} kv heads")


def _options(double: Double, name: str, arguments: dict[str, Any]) -> Window:
    """Check what the double does not model; return the window."""
    double.require(arguments["dropout_p"] == 0.0, f"{name}: dropout is not modelled")
    double.require(not arguments["return_dropout_randval"], f"{name}: return_dropout_randval is not modelled")
    scale = arguments["softmax_scale"]
    double.require(scale == scale and abs(scale) != float("inf"), f"{name}: softmax_scale is {scale}")
    plain = ("out", "bias", "alibi_slopes", "q_descale", "k_descale", "v_descale", "gen", "block_table")
    padded = ("cu_seqlens_q_padded", "cu_seqlens_k_padded", "cu_seqlens_kv")
    guards.unused(double, name, **{key: arguments[key] for key in (*plain, *padded) if key in arguments})
    left, right = int(arguments["window_size_left"]), int(arguments["window_size_right"])
    sink = int(arguments.get("sink_size", 0))
    double.require(
        left >= -1 and right >= -1, f"{name}: window ({left}, {right}): -1 means unlimited, less is an error"
    )
    double.require(sink >= 0, f"{name}: sink_size {sink} is negative")
    return left, right, sink


def _sinks(double: Double, name: str, arguments: dict[str, Any], heads: int) -> Tensor | None:
    sinks: Tensor | None = arguments.get("sink_ptr")
    if sinks is not None:
        double.require(sinks.dtype == torch.float32, f"{name}: sink_ptr is {sinks.dtype}, fp32 expected")
        guards.contiguous(double, name, sink_ptr=sinks)
        guards.shape(double, name, "sink_ptr", sinks, (heads,))
    return sinks


def _asm(double: Double, name: str, arguments: dict[str, Any]) -> None:
    """The v3 kernels: hand-written for bf16 and head_dim 128, no windows, no sinks."""
    q, v = arguments["q"], arguments["v"]
    double.require(q.dtype == torch.bfloat16, f"{name}: bf16 only")
    double.require(q.shape[-1] in (128, 192) and v.shape[-1] == 128, f"{name}: head_dim {q.shape[-1]}/{v.shape[-1]}")
    window = (int(arguments["window_size_left"]), int(arguments["window_size_right"]))
    causal = bool(arguments["is_causal"])
    double.require(
        window == (-1, -1) or (causal and window == (-1, 0)), f"{name}: window {window} is lost in this kernel"
    )


def mha_fwd(double: Double, name: str, arguments: dict[str, Any]) -> Result:
    """Dense attention, q [B,Sq,H,D], k/v [B,Sk,Hkv,D]."""
    q, k, v = arguments["q"], arguments["k"], arguments["v"]
    for argument, tensor in (("q", q), ("k", k), ("v", v)):
        double.require(tensor.dim() == 4, f"{name}: {argument} has {tensor.dim()} dimensions, [B,S,H,D] expected")
    double.require(arguments.get("cu_seqlens_q") is None, f"{name}: cu_seqlens_q is not modelled in the dense op")
    _common(double, name, q, k, v)
    double.require(q.shape[0] == k.shape[0] == v.shape[0], f"{name}: batch sizes differ")
    double.require(k.shape[1] == v.shape[1], f"{name}: k has {k.shape[1]} rows, v {v.shape[1]}")
    window = _options(double, name, arguments)
    sinks = _sinks(double, name, arguments, q.shape[2])
    mask = visible(q.shape[1], k.shape[1], bool(arguments["is_causal"]), window)
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32, device=q.device)
    for row in range(q.shape[0]):
        result, lse[row] = attend(q[row], k[row], v[row], arguments["softmax_scale"], mask, sinks=sinks)
        out[row] = _stored(double, name, result, q.dtype)
    return out, lse if arguments["return_softmax_lse"] else lse.new_empty(0), *_rest(q)


def mha_varlen_fwd(double: Double, name: str, arguments: dict[str, Any]) -> Result:
    """Packed attention, q [total_q,H,D], k/v [total_k,Hkv,D], cu_seqlens int32 [B+1]."""
    q, k, v = arguments["q"], arguments["k"], arguments["v"]
    for argument, tensor in (("q", q), ("k", k), ("v", v)):
        double.require(tensor.dim() == 3, f"{name}: {argument} has {tensor.dim()} dimensions, [total,H,D] expected")
    _common(double, name, q, k, v)
    double.require(k.shape[0] == v.shape[0], f"{name}: k has {k.shape[0]} rows, v {v.shape[0]}")
    window = _options(double, name, arguments)
    soft_cap = float(arguments["logits_soft_cap"])
    double.require(soft_cap >= 0.0, f"{name}: logits_soft_cap {soft_cap} is negative")
    double.require(arguments["min_seqlen_q"] == 0, f"{name}: min_seqlen_q is not modelled")
    q_ends = offsets(double, name, "cu_seqlens_q", arguments["cu_seqlens_q"], q, int(arguments["max_seqlen_q"]))
    k_ends = offsets(double, name, "cu_seqlens_k", arguments["cu_seqlens_k"], k, int(arguments["max_seqlen_k"]))
    double.require(len(q_ends) == len(k_ends), f"{name}: cu_seqlens_q and cu_seqlens_k differ in length")
    sinks = _sinks(double, name, arguments, q.shape[1])
    out = torch.zeros(*q.shape[:2], v.shape[2], dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)
    for index in range(len(q_ends) - 1):
        queries, keys = slice(*q_ends[index : index + 2]), slice(*k_ends[index : index + 2])
        rows, columns = queries.stop - queries.start, keys.stop - keys.start
        double.require(columns > 0 or rows == 0, f"{name}: sequence {index} has {rows} queries and no keys")
        if rows:
            mask = visible(rows, columns, bool(arguments["is_causal"]), window)
            result, lse[:, queries] = attend(
                q[queries], k[keys], v[keys], arguments["softmax_scale"], mask, soft_cap, sinks
            )
            out[queries] = _stored(double, name, result, q.dtype)
    return out, lse if arguments["return_softmax_lse"] else lse.new_empty(0), *_rest(q)


def _stored(double: Double, name: str, result: Tensor, dtype: torch.dtype) -> Tensor:
    """In ``dtype``: the assembly kernels round to the nearest by default, CK's as it is built for the chip."""
    return result.to(dtype) if name.startswith("fmha_v3") else narrowed(result, dtype, double.arch, "attention")


def offsets(double: Double, name: str, argument: str, ends: Tensor | None, data: Tensor, longest: int) -> list[int]:
    """Check the offsets of packed sequences against their data and the longest length; return them."""
    double.require(ends is not None, f"{name}: {argument} is missing")
    assert ends is not None
    double.require(ends.dtype == torch.int32, f"{name}: {argument} is {ends.dtype}, int32 expected")
    double.require(ends.dim() == 1 and ends.numel() >= 2, f"{name}: {argument} has shape {tuple(ends.shape)}")
    guards.contiguous(double, name, **{argument: ends})
    values = [int(value) for value in ends.tolist()]
    lengths = [after - before for before, after in itertools.pairwise(values)]
    double.require(values[0] == 0 and min(lengths) >= 0, f"{name}: {argument} {values} is not monotonic from 0")
    double.require(values[-1] == data.shape[0], f"{name}: {argument} ends at {values[-1]} of {data.shape[0]} rows")
    double.require(max(lengths) <= longest, f"{name}: {argument} has a sequence of {max(lengths)} rows, max {longest}")
    return values


def _rest(q: Tensor) -> tuple[Tensor, Tensor]:
    """The dropout mask (empty) and the rng state that every forward returns."""
    return q.new_empty(0), torch.empty(2, dtype=torch.int64, device=q.device)


def fmha_v3_fwd(double: Double, name: str, arguments: dict[str, Any]) -> Result:
    _asm(double, name, arguments)
    return mha_fwd(double, name, arguments)


def fmha_v3_varlen_fwd(double: Double, name: str, arguments: dict[str, Any]) -> Result:
    _asm(double, name, arguments)
    double.require(arguments["logits_soft_cap"] == 0.0, f"{name}: the ASM kernel has no soft cap")
    return mha_varlen_fwd(double, name, arguments)


def takes_asm(double: Double, q: Tensor, v: Tensor, window: Window, soft_cap: float = 0.0) -> bool:
    """aiter's own routing rule for the v3 kernels (dense callers also ask for more than 128 rows)."""
    sliding = window[0] > 0 or window[1] > 0
    sizes = q.shape[-1] in (128, 192) and v.shape[-1] == 128
    return double.arch in ASM_ARCHES and sizes and not sliding and q.dtype == torch.bfloat16 and soft_cap == 0.0
