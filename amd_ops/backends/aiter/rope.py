"""Rotary embedding of q and k in one launch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..probing import apart, disagreement, made_up, unusable
from .library import HALF, expect, function_of

_NEOX = 0


def make(reference: Callable[..., Any], kind: str) -> Candidate:
    """``rope_cached_2c_fwd`` turns q and k in one launch: inputs [S, B, H, D] by strides, tables [S, 1, 1, R] for all
    rows alike.

    Where the rows of a batch have positions of their own, the positions form reads one table of all rows' angles.
    """
    shared, names = function_of("rope_cached_2c_fwd")
    common = ("rotate_style", "reuse_freqs_front_part", "nope_first", "transpose_output")
    expect("rope_cached_2c_fwd", names, ("input_x", "input_y", "cos", "sin", *common))
    single, single_names = function_of("rope_cached_positions_2c_fwd")
    expect("rope_cached_positions_2c_fwd", single_names, ("input_x", "input_y", "cos", "sin", "positions", *common))

    def check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> str:
        if q.dtype not in HALF or k.dtype is not q.dtype:
            return f"q is {q.dtype}, k {k.dtype}: both must be fp16 or both bf16"
        if cos.dtype is not q.dtype or sin.dtype is not q.dtype:
            return f"the tables are {cos.dtype}, q is {q.dtype}"
        if q.dim() != 4 or k.dim() != 4 or cos.dim() != 3 or unsqueeze_dim not in (1, 2):
            return "q and k are not [B, H, S, D] or [B, S, H, D] with tables [B, S, R]"
        reason = unusable(kind, q, k, cos, sin)
        if reason:
            return reason
        if q.stride(3) != 1 or k.stride(3) != 1:
            return "the last dimension of q or k is not dense"
        if cos.shape[2] % 2 or cos.shape[2] > q.shape[3] or k.shape[3] != q.shape[3]:
            return "the tables' width does not fit the heads"
        if cos.shape[0] not in (1, q.shape[0]) or cos.shape[1] != q.shape[3 - unsqueeze_dim]:
            return "the tables' length or batch does not fit q"
        return ""

    def run(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
        order, back = ((2, 0, 1, 3), (1, 2, 0, 3)) if unsqueeze_dim == 1 else ((1, 0, 2, 3), (1, 0, 2, 3))
        x, y = q.permute(order), k.permute(order)
        batch, length, width = cos.shape
        if batch == 1 or (cos.stride(0) == 0 and sin.stride(0) == 0):
            tables = [table[0].contiguous().view(length, 1, 1, width) for table in (cos, sin)]
            turned = shared(x, y, *tables, _NEOX, False, False, True)
        else:
            tables = [table.contiguous().view(batch * length, 1, 1, width) for table in (cos, sin)]
            positions = torch.arange(batch * length, device=q.device).view(batch, length).t().contiguous()
            turned = single(x, y, *tables, positions, _NEOX, False, False, True)
        if not isinstance(turned, (tuple, list)) or len(turned) != 2:
            raise TypeError("aiter's rope did not return two tensors")
        return turned[0].permute(back), turned[1].permute(back)

    def variant(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> Hashable:
        own = cos.shape[0] != 1 and (cos.stride(0) != 0 or sin.stride(0) != 0)
        return q.dtype, q.shape[3], cos.shape[2], unsqueeze_dim, own

    def compare(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> str:
        own = cos.shape[0] != 1 and (cos.stride(0) != 0 or sin.stride(0) != 0)
        shape = (2, 3, 5, q.shape[3]) if unsqueeze_dim == 1 else (2, 5, 3, q.shape[3])
        xs = [made_up(shape, q.dtype, q.device, 8), made_up(shape, q.dtype, q.device, 9)]
        tables = [made_up((2 if own else 1, 5, cos.shape[2]), q.dtype, q.device, seed) for seed in (10, 11)]
        got = run(xs[0], xs[1], tables[0], tables[1], unsqueeze_dim)
        want = reference(*(x.float() for x in (*xs, *tables)), unsqueeze_dim)
        return disagreement(got[0], want[0]) or disagreement(got[1], want[1])

    return Candidate(run, check, variant, apart(compare), bind=functools.partial(_bind, shared))


def _bind(
    shared: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int
) -> Callable[..., tuple[Tensor, Tensor]] | None:
    alike = unsqueeze_dim == 1 and q.shape[2] == 1 and cos.shape[0] == 1
    return _one_token(shared, cos.shape[2]) if alike else None


def _one_token(shared: Callable[..., Any], width: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the call for one token of [B, H, 1, D] whose tables [1, 1, width] serve every row of the batch."""
    table = (1, 1, 1, width)

    def fast(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
        x, y = q.permute(2, 0, 1, 3), k.permute(2, 0, 1, 3)
        x, y = shared(x, y, cos.view(table), sin.view(table), _NEOX, False, False, True)
        return x.permute(1, 2, 0, 3), y.permute(1, 2, 0, 3)

    return fast
