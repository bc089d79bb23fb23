"""Rotary position embedding in the rotate-half layout: dimension i pairs with i + R/2, R the rotated width.

q [B, H, S, D] and k [B, Hkv, S, D] with unsqueeze_dim=1, or [B, S, H, D] with unsqueeze_dim=2; cos and sin [B or 1,
S, R], R <= D (partial rotary: the last D - R dimensions pass through). Tiers: aiter -> triton -> torch (stock's order
of operations) -> eager (on halves).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import aiter
from .backends.triton import tier as triton
from .checks import TORCH_ERRORS, complaint, describe
from .dispatch import Op, Tier, always
from .tracing import traced

_compiling = torch.compiler.is_dynamo_compiling


def _fit(q: Tensor, k: Tensor, cos: Tensor, unsqueeze_dim: int) -> None:
    """Refuse what broadcasting would accept and answer wrongly; the public function then names the argument."""
    if q.dim() != 4 or k.dim() != 4 or cos.dim() != 3 or unsqueeze_dim not in (1, 2):
        raise ValueError("wrong number of dimensions")
    if cos.size(1) != q.size(3 - unsqueeze_dim) or cos.size(0) not in (1, q.size(0)) or q.size(3) != k.size(3):
        raise ValueError("shapes do not fit")


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return (x * cos) + (torch.cat((-second, first), dim=-1) * sin)


def torch_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
    """The stock order of operations: results are bit-equal to the stock function in every dtype.

    The heads of one position are rotated together, since launches are all that they cost: six in place of ten.
    """
    _fit(q, k, cos, unsqueeze_dim)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    width = cos.shape[-1]
    if width == q.shape[-1]:
        if q.size(3 - unsqueeze_dim) == 1 and q.dtype is k.dtype and not _compiling():
            both = _rotate(torch.cat((q, k), dim=unsqueeze_dim), cos, sin)
            heads = (q.size(unsqueeze_dim), k.size(unsqueeze_dim))
            turned_q, turned_k = both.split_with_sizes(heads, dim=unsqueeze_dim)
            return turned_q, turned_k
        return _rotate(q, cos, sin), _rotate(k, cos, sin)
    return (
        torch.cat((_rotate(q[..., :width], cos, sin), q[..., width:]), dim=-1),
        torch.cat((_rotate(k[..., :width], cos, sin), k[..., width:]), dim=-1),
    )


def eager_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
    """The textbook rotation of (first half, second half) pairs: the reference."""
    _fit(q, k, cos, unsqueeze_dim)
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _rotate_halves(q, cos, sin), _rotate_halves(k, cos, sin)


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = cos.shape[-1]
    half = width // 2
    a, b, rest = x[..., :half], x[..., half:width], x[..., width:]
    turned = (a * cos[..., :half] - b * sin[..., :half], b * cos[..., half:] + a * sin[..., half:])
    return torch.cat((*turned, rest.to(turned[0].dtype)), dim=-1)


_rope = Op(
    "apply_rope",
    [
        Tier("aiter", aiter.offer("apply_rope", "USE_OPTIMIZED_OPS", eager_rope), aiter.wanted("USE_OPTIMIZED_OPS")),
        Tier("triton", triton.offer("apply_rope", "USE_OPTIMIZED_OPS", eager_rope), triton.wanted("USE_OPTIMIZED_OPS")),
        Tier("torch", always(torch_rope)),
        Tier("eager", always(eager_rope)),
    ],
)


def _like(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
    """[B, S, H, D] in memory in either order of dimensions: how the projections left it and what attention reads."""
    if unsqueeze_dim != 1:
        return q.new_empty(q.shape), k.new_empty(k.shape)
    kept = (x.new_empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3])).transpose(1, 2) for x in (q, k))
    return next(kept), next(kept)


_traced = traced(
    _rope, "(Tensor q, Tensor k, Tensor cos, Tensor sin, int unsqueeze_dim) -> (Tensor, Tensor)", torch_rope, _like
)


@_rope.public
def apply_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Rotate q and k by the angles whose cosines and sines are given; shapes are in the module text. Returns new (q,
    k).
    """
    if _compiling():
        result: tuple[Tensor, Tensor] = _traced.call(q, k, cos, sin, unsqueeze_dim)
        return result
    _rope.calls += 1
    try:
        result = _rope.call(q, k, cos, sin, unsqueeze_dim)
    except TORCH_ERRORS:
        diagnose_rope("apply_rope", q, k, cos, sin, unsqueeze_dim)
        raise
    return result


def diagnose_rope(op: str, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> None:
    """Name the argument of a rotating op that is unusable; return when none is."""
    for name, tensor, rank in (("q", q, 4), ("k", k, 4), ("cos", cos, 3), ("sin", sin, 3)):
        if not isinstance(tensor, Tensor) or tensor.dim() != rank:
            raise complaint(op, name, describe(tensor), f"a tensor of {rank} dimensions")
        if tensor.device != q.device:
            raise complaint(op, name, f"on {tensor.device}", f"{q.device}, where q is")
    if unsqueeze_dim not in (1, 2):
        raise complaint(op, "unsqueeze_dim", unsqueeze_dim, "1 for [B, H, S, D] or 2 for [B, S, H, D]")
    if cos.shape != sin.shape or cos.shape[-1] % 2 or cos.shape[-1] > q.shape[-1]:
        raise complaint(
            op,
            "cos and sin",
            f"{describe(cos)} and {describe(sin)}",
            f"one shape [B, S, R], R even and <= {q.shape[-1]}",
        )
    if k.shape[-1] != q.shape[-1]:
        raise complaint(op, "k", describe(k), f"a last dimension of {q.shape[-1]}, as q")
    length = q.shape[3 - unsqueeze_dim]
    if cos.shape[1] != length or cos.shape[0] not in (1, q.shape[0]):
        raise complaint(op, "cos", describe(cos), f"[{q.shape[0]} or 1, {length}, R]")
