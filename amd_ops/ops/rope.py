"""Rotary position embedding in the rotate-half layout: dimension i pairs with i + R/2, R the rotated width.

q [B, H, S, D] and k [B, Hkv, S, D] with unsqueeze_dim=1, or [B, S, H, D] with unsqueeze_dim=2; cos and sin [B or 1,
S, R], R <= D (partial rotary: the last D - R dimensions pass through). Tables of halves are [B or 1, S, D / 2], a
column for each pair. Tiers: aiter -> triton -> torch (stock's order of operations) -> eager (on halves).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import modes, toggles
from ..checks import TORCH_ERRORS, complaint, describe
from ..dispatch import Site, always
from ..modules import original
from .tiers import make_op

_compiling = torch.compiler.is_dynamo_compiling


def nobody(settings: toggles.Settings) -> bool:
    """No toggle asks for one of these by name: what a layer cannot have is counted, and neither warned of nor an
    error.
    """
    return False


_site = Site("rope", "taken", nobody)


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


def signed(sin: Tensor) -> Tensor:
    """The table by which ``torch_rope_signed`` multiplies: its first half is negated."""
    first, second = sin.chunk(2, -1)
    return torch.cat((-first, second), dim=-1)


def torch_rope_signed(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As stock, bit for bit, for heads x [B, H, S, D] and tables [B or 1, 1, S, D] of which sin is ``signed``: the
    sign is in the table, so that the halves are only exchanged.
    """
    return x * cos + torch.roll(x, x.shape[-1] // 2, -1) * sin


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


_rope = make_op("apply_rope", "USE_OPTIMIZED_OPS", torch=always(torch_rope), eager=eager_rope)


def takes_rope(
    rotate: Callable[..., Tensor], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int, *, halves: bool = False
) -> bool:
    """Say whether ``apply_rope`` is what a stock function computes for this call; else its own statements run.

    ``rotate`` is the rotate_half of the function's file, or what turns the halves there with tables of ``halves``. The
    stock function broadcasts whatever fits (tables [S, R], packed tokens [T, H, D], negative dimensions, one position
    for many queries), the op takes the forms in the module text.

    Examples:
        >>> def other(x):  # no rotate_half: the file's own statements run
        ...     return x
        >>> q = torch.ones(1, 2, 3, 8)
        >>> amd_ops.takes_rope(other, q, q, torch.ones(1, 3, 8), torch.zeros(1, 3, 8), 1)
        False
    """
    if halves and _compiling():
        return False  # a compiler fuses the stock statements, which need no whole tables
    if not is_rotate_half(rotate):
        reason = "rotate_half is no longer that of the file"
    else:
        reason = unusual(q, k, cos, sin, dim, halves)
        if not _compiling():
            reason = reason or modes.hidden()
    if reason and not _compiling():
        _site.declined(reason)
    return not reason


def is_rotate_half(rotate: Any) -> bool:
    """Run outside a trace: which function it is, is a constant of the graph (guarded by dynamo itself)."""
    name = getattr(rotate, "__name__", "")
    # Any function is that of its own file: this one's has the rotation in it.
    return original(rotate, name) and "apply_rotary_pos_emb" in rotate.__globals__


is_rotate_half._dynamo_marked_constant = True  # type: ignore[attr-defined]


def unusual(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int, halves: bool = False) -> str:
    """Return "" for a call of the forms in the module text, else what it has that they have not."""
    if halves and 2 * cos.shape[-1] != q.shape[-1]:
        return "the tables have not one column for each pair"
    if type(dim) is not int or dim not in (1, 2):
        return "the tables are unsqueezed in another dimension than 1 and 2"
    if q.dim() != 4 or k.dim() != 4 or cos.dim() != 3 or cos.shape != sin.shape:
        return "q and k are not of four dimensions, or the tables not of three"
    rows, batch = 3 - dim, q.shape[0]
    if q.shape[rows] != cos.shape[1] or k.shape[rows] != cos.shape[1]:
        return "q, k and the tables differ in length"
    if k.shape[0] != batch or cos.shape[0] not in (1, batch):
        return "q, k and the tables differ in batch"
    if k.shape[3] != q.shape[3] or cos.shape[2] > q.shape[3] or cos.shape[2] % 2:
        return "the tables are wider than the heads, of odd width, or q and k differ in head size"
    return ""


def whole(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Tables of halves as whole ones, in one launch for both."""
    first, second = torch.cat((cos, cos, sin, sin), dim=-1).chunk(2, dim=-1)
    return first, second


def _arranged(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int, halves: bool) -> tuple[Any, ...]:
    """What the tiers are given of a call of ``apply_rope``."""
    return (q, k, *(whole(cos, sin) if halves else (cos, sin)), dim)


_rope.arrange = _arranged


@_rope.public
def apply_rope(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, *, halves: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotate q and k by the angles whose cosines and sines are given; shapes are in the module text. Returns new (q,
    k). ``halves`` says that the tables are of halves.

    Examples:
        >>> q = k = torch.tensor([[[[1.0, 2.0]]]])  # [B, H, S, D]; a quarter turn
        >>> amd_ops.apply_rope(q, k, torch.zeros(1, 1, 2), torch.ones(1, 1, 2))[0]
        tensor([[[[-2.,  1.]]]])
    """
    if halves:
        cos, sin = whole(cos, sin)
    if _compiling():
        return torch_rope(q, k, cos, sin, unsqueeze_dim)
    _rope.calls += 1
    try:
        result: tuple[Tensor, Tensor] = _rope.call(q, k, cos, sin, unsqueeze_dim)
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
