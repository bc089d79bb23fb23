"""apply_rope on the kernel of kernels/rope.py, with its backward; and the two fusions around it: a norm of every head
of q and k in front (qk_norm_rope), and a write of the turned k and of v into a static cache behind (into_cache).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..backward import once
from ..probing import made_up, needs_grad, prove, wanting
from . import launch, tuning
from .common import apply, unfit
from .configs import FEW, Config, for_heads
from .kernels import rope as kernels
from .layout import MAX_OFFSET, Via, directly, power_of_two, reach, specialised
from .target import Target


@dataclass(frozen=True)
class Norms:
    """The norms of q's and k's heads: weights [D], dense, and the form (llama, gemma or fp32_weight)."""

    q_weight: Tensor
    k_weight: Tensor
    eps: float
    form: str

    def parts(self) -> tuple[Tensor, Tensor, float]:
        """What the kernel reads."""
        return self.q_weight, self.k_weight, self.eps


@dataclass(frozen=True)
class Cache:
    """A static cache of one layer: keys [B, Hkv, L, D] and values [B, Hkv, L, Dv] by strides, and the rows to write,
    positions [S] (int32 or int64, on the GPU; one outside [0, L) writes nothing). values [B, Hkv, S, Dv] are the new
    ones.
    """

    keys: Tensor
    values: Tensor
    new_values: Tensor
    positions: Tensor


def by_token(x: Tensor, dim: int) -> tuple[int, int, int]:
    """Strides (batch, token, head) of [B, H, S, D] (dim 1) or [B, S, H, D] (dim 2)."""
    return x.stride(0), x.stride(3 - dim), x.stride(dim)


def fresh(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Dense [B, S, H, D] memory, seen in x's order of dimensions."""
    batch, heads, length, size = x.shape[0], x.shape[dim], x.shape[3 - dim], x.shape[3]
    out = torch.empty((batch, length, heads, size), dtype=dtype, device=x.device)
    return out.transpose(1, 2) if dim == 1 else out


def launch_rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    dim: int,
    config: Config,
    *,
    backward: bool = False,
    dtypes: tuple[torch.dtype, torch.dtype] | None = None,
    norms: Norms | None = None,
    cache: Cache | None = None,
    via: Via = directly,
) -> tuple[Tensor, Tensor]:
    """New (q, k) in the order of dimensions of the inputs; with a cache the second is ``cache.keys``.

    ``dtypes`` of the results; by default those that torch promotes q and k with the tables to.
    """
    kinds = dtypes or (torch.promote_types(q.dtype, cos.dtype), torch.promote_types(k.dtype, cos.dtype))
    q_out = fresh(q, dim, kinds[0])
    k_out = fresh(k, dim, kinds[1]) if cache is None else cache.keys
    tensors = rope_tensors(q, k, cos, sin, q_out, k_out, norms, cache)
    grid, numbers, constants = rope_settings(tensors, dim, config, norms, cache, backward=backward)
    via(kernels.rope)[grid](*tensors, *numbers, **constants, num_warps=config.warps)
    return q_out, k_out


def rope_tensors(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    q_out: Tensor,
    k_out: Tensor,
    norms: Norms | None,
    cache: Cache | None,
) -> tuple[Tensor, ...]:
    """What the kernel reads and writes, in its order; where it needs none, one that is there."""
    v, v_out, positions = (k, k, cos) if cache is None else (cache.new_values, cache.values, cache.positions)
    weights = (cos, cos) if norms is None else (norms.q_weight, norms.k_weight)
    return q, k, v, cos, sin, q_out, k_out, v_out, positions, *weights


def rope_settings(
    tensors: tuple[Tensor, ...], dim: int, config: Config, norms: Norms | None, cache: Cache | None, *, backward: bool
) -> tuple[tuple[int, int], tuple[float, ...], dict[str, Any]]:
    """The grid, the numbers behind the tensors and the constants, in the order of the kernel's parameters."""
    q, k, v, cos, sin, _, k_out, v_out, *_ = tensors
    length, q_heads, k_heads, size = q.shape[3 - dim], q.shape[dim], k.shape[dim], q.shape[3]
    half, at = cos.shape[2] // 2, dim if cache is None else 1
    table_strides = [(t.stride(0) if t.shape[0] > 1 else 0, t.stride(1)) for t in (cos, sin)]
    heads = -(-q_heads // config.rows) + -(-k_heads // config.rows) * (1 if cache is None else 2)
    numbers = (
        0.0 if norms is None else norms.eps,
        length, q_heads, k_heads, length if cache is None else cache.keys.shape[2],
        *by_token(q, dim), *by_token(k, dim), *by_token(v, at),
        *table_strides[0], *table_strides[1], *by_token(k_out, at), *by_token(v_out, at),
    )  # fmt: skip
    constants = {
        "D": size, "DV": v.shape[3], "HALF": half, "FORM": norms.form if norms else "", "BACKWARD": backward,
        "CACHE": cache is not None, "BLOCK_H": config.rows, "BLOCK": config.block,
        "BLOCK_REST": power_of_two(size - 2 * half), "BLOCK_V": power_of_two(v.shape[3]),
    }  # fmt: skip
    return (q.shape[0] * length, heads), numbers, constants


def settled_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, config: Config, norms: Norms | None = None
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return ``run(q, k, cos, sin, *weights of the norms)`` for one token of [B, H, 1, D] laid out like this."""
    q_kind, k_kind = torch.promote_types(q.dtype, cos.dtype), torch.promote_types(k.dtype, cos.dtype)
    tensors = rope_tensors(q, k, cos, sin, fresh(q, 1, q_kind), fresh(k, 1, k_kind), norms, None)
    grid, numbers, constants = rope_settings(tensors, 1, config, norms, None, backward=False)
    start = launch.settled(kernels.rope, grid, numbers, constants, config.warps)
    q_shape, k_shape = tuple(q.shape), tuple(k.shape)

    def run(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        q_out, k_out = q.new_empty(q_shape, dtype=q_kind), k.new_empty(k_shape, dtype=k_kind)
        start(q, k, k, cos, sin, q_out, k_out, k, cos, *(weights or (cos, cos)))
        return q_out, k_out

    return run


class RopeFunction(torch.autograd.Function):
    """The rotation; its backward turns the gradients back. The tables get no gradient."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int, config: Config
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.rest = dim, config, (q.dtype, k.dtype)
        return launch_rope(q, k, cos, sin, dim, config)

    @staticmethod
    @once("apply_rope in tier triton")
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        dim, config, dtypes = ctx.rest
        dq, dk = (g if g.stride(3) == 1 and reach(g) <= MAX_OFFSET else g.contiguous() for g in (dq, dk))
        return (*launch_rope(dq, dk, cos, sin, dim, config, backward=True, dtypes=dtypes), None, None, None, None)


def misfit(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> str:
    """Say what no kernel of this op takes, whoever wrote it."""
    if q.dim() != 4 or k.dim() != 4 or cos.dim() != 3 or dim not in (1, 2):
        return "q and k are not [B, H, S, D] or [B, S, H, D] with tables [B, S, R]"
    if cos.shape != sin.shape or cos.shape[2] % 2 or cos.shape[2] > q.shape[3] or k.shape[3] != q.shape[3]:
        return "the tables' width does not fit the heads"
    if cos.shape[0] not in (1, q.shape[0]) or cos.shape[1] != q.shape[3 - dim]:
        return "the tables' length or batch does not fit q"
    if k.shape[0] != q.shape[0] or k.shape[3 - dim] != q.shape[3 - dim]:
        return "q and k differ in batch or length"
    if cos.dtype is not sin.dtype:
        return f"cos is {cos.dtype}, sin {sin.dtype}"
    return "the tables need a gradient" if needs_grad(cos, sin) else ""


def made_up_rope(
    length: int, q: Tensor, k: Tensor, cos: Tensor, dim: int, counts: tuple[int, int] = (3, 3)
) -> list[Tensor]:
    """Made-up q, k, cos, sin of a call's dtypes and widths; q and k want the gradients that the call's do.

    ``counts`` are the heads of q and k.
    """
    heads = []
    for seed, t, count in ((8, q, counts[0]), (9, k, counts[1])):
        shape = (2, count, length, q.shape[3]) if dim == 1 else (2, length, count, q.shape[3])
        heads.append(made_up(shape, t.dtype, q.device, seed))
    rows = 2 if cos.shape[0] > 1 else 1
    tables = [made_up((rows, length, cos.shape[2]), cos.dtype, q.device, seed) for seed in (10, 11)]
    return [*wanting(heads, (q, k)), *tables]


class Rope:
    """The rope ops on one target."""

    def __init__(self, op: str, target: Target) -> None:
        self.target, self.table = target, tuning.Table(op, target)

    def config(self, q: Tensor, cos: Tensor, dim: int) -> Config:
        """The cut for these heads and this class of token count."""
        key = self.key(q, cos, dim)
        return self.table.get(key) or self.table.put(key, for_heads(max(cos.shape[2] // 2, 1), key[3], self.target))

    @staticmethod
    def key(q: Tensor, cos: Tensor, dim: int) -> tuple[torch.dtype, int, int, bool]:
        """What a cut depends on."""
        return q.dtype, q.shape[3], cos.shape[2], q.shape[0] * q.shape[3 - dim] < FEW

    def check(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int, *more: Tensor) -> str:
        """Cheap tests first. ``more`` are the other tensors of a fusion."""
        reason = misfit(q, k, cos, sin, dim)
        if reason:
            return reason
        if q.stride(3) != 1 or k.stride(3) != 1 or cos.stride(2) != 1 or sin.stride(2) != 1:
            return "the last dimension of q, k or the tables is not dense"
        return unfit(self.target, q, k, cos, sin, *more)

    def variant(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> Hashable:
        """Return the key under which one compiled kernel is cached and proved."""
        strides = (*by_token(q, dim), *by_token(k, dim), cos.stride(1), sin.stride(1))
        grads = (q.requires_grad, k.requires_grad) if needs_grad(q, k) else ()
        own = cos.shape[0] > 1 and (cos.stride(0) != 0 or sin.stride(0) != 0)
        return *self.key(q, cos, dim), k.dtype, cos.dtype, dim, own, grads, specialised(strides)

    def samples(self, q: Tensor, k: Tensor, cos: Tensor, dim: int) -> list[Tensor]:
        """Made-up q, k, cos, sin of this call's dtypes and widths, wanting the gradients that it wants."""
        return made_up_rope(5 if self.key(q, cos, dim)[3] else FEW // 2 + 1, q, k, cos, dim)


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of apply_rope."""
    rope = Rope(op, target)

    def run(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        config = rope.config(q, cos, dim)
        if needs_grad(q, k):
            both: tuple[Tensor, Tensor] = apply(RopeFunction, q, k, cos, sin, dim, config)
            return both
        return launch_rope(q, k, cos, sin, dim, config)

    def probe(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> str:
        with torch.no_grad():
            key, guess = rope.key(q, cos, dim), rope.config(q, cos, dim)
            rope.table.tune(key, guess, lambda cut: launch_rope(q, k, cos, sin, dim, cut))
        return prove(run, reference, rope.samples(q, k, cos, dim), (dim,))

    def bind(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int) -> Callable[..., tuple[Tensor, Tensor]] | None:
        if dim != 1 or q.shape[2] != 1 or needs_grad(q, k):
            return None
        fast = settled_rope(q, k, cos, sin, rope.config(q, cos, dim))
        return lambda q, k, cos, sin, dim: fast(q, k, cos, sin)

    return Candidate(run, rope.check, rope.variant, probe, bind=bind)
