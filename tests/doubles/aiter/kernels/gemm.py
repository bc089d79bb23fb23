"""``gemm_a16w16``/``tgemm.mm`` and ``shuffle_weight``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ..state import Double
from . import guards

_ROWS, _COLUMNS = 16, 32  # the (16, 16) layout of 16-bit weights packs blocks of 16 rows and 32 columns


def shuffle_16x16(weight: Tensor) -> Tensor:
    n, k = weight.shape[-2:]
    blocks = weight.reshape(-1, n // _ROWS, _ROWS, k // _COLUMNS, 4, 8)
    return blocks.permute(0, 1, 3, 4, 2, 5).contiguous().view(weight.shape)


def unshuffle_16x16(weight: Tensor) -> Tensor:
    n, k = weight.shape[-2:]
    blocks = weight.reshape(-1, n // _ROWS, k // _COLUMNS, 4, _ROWS, 8)
    return blocks.permute(0, 1, 4, 2, 3, 5).contiguous().view(weight.shape)


def shuffle_weight(double: Double, arguments: dict[str, Any]) -> Tensor:
    """Shuffled copy with the tag ``is_shuffled`` as a bare attribute, cut off from autograd."""
    weight: Tensor = arguments["x"]
    name = "shuffle_weight"
    double.require(tuple(arguments["layout"]) == (16, 16), f"{name}: layout {arguments['layout']} is not modelled")
    double.require(not arguments["use_int4"], f"{name}: use_int4 is not modelled")
    guards.half(double, name, x=weight)
    double.require(weight.dim() in (2, 3), f"{name}: {weight.dim()} dimensions, [N,K] or [E,N,K] expected")
    n, k = weight.shape[-2:]
    double.require(n % _ROWS == 0 and k % _COLUMNS == 0, f"{name}: [{n},{k}] needs N%16 == 0 and K%32 == 0")
    shuffled = shuffle_16x16(weight.detach())
    shuffled.is_shuffled = True  # type: ignore[attr-defined]
    double.shuffled.append(StorageWeakRef(shuffled.untyped_storage()))
    return shuffled


def gemm_a16w16(double: Double, name: str, arguments: dict[str, Any]) -> Tensor:
    """``A [.., K] @ B [N, K].T (+ bias [N])`` -> ``[.., N]`` in ``otype`` (default: A's dtype)."""
    a, b, bias, otype = arguments["A"], arguments["B"], arguments["bias"], arguments["otype"]
    guards.half(double, name, A=a, B=b, **({} if bias is None else {"bias": bias}))
    double.require(a.dim() >= 2, f"{name}: A has {a.dim()} dimension; at least 2")
    double.require(b.dim() == 2, f"{name}: B has {b.dim()} dimensions, [N,K] expected")
    double.require(a.shape[-1] == b.shape[1], f"{name}: A has K={a.shape[-1]}, B [N,K] has K={b.shape[1]}")
    guards.not_empty(double, name, A=a, B=b)
    double.require(
        a.is_contiguous(),
        f"{name}: A {tuple(a.shape)} is not contiguous: 3-D silently becomes F.linear (wrong for a shuffled B), "
        "2-D is read as if it were contiguous",
    )
    guards.contiguous(double, name, B=b)
    if bias is not None:
        guards.contiguous(double, name, bias=bias)
        guards.shape(double, name, "bias", bias, (b.shape[0],))
    guards.unused(double, name, **{key: arguments[key] for key in ("scale_a", "scale_b", "scale_c")})
    otype = a.dtype if otype is None else otype
    double.require(otype in (*guards.HALF, torch.float32), f"{name}: otype {otype}")
    weight = _plain(double, name, b, a.dtype, otype)
    result = a.reshape(-1, a.shape[-1]).float() @ weight.float().t()
    if bias is not None:
        result = result + bias.float()
    return result.to(otype).view(*a.shape[:-1], b.shape[0])


def is_shuffled(double: Double, name: str, argument: str, weight: Tensor) -> bool:
    """Whether shuffle_weight made this memory; the mark must say the same."""
    storage = StorageWeakRef(weight.untyped_storage())
    shuffled = any(known == storage for known in double.shuffled if not known.expired())
    tagged = getattr(weight, "is_shuffled", False) is True
    known = "" if shuffled else "not "
    double.require(tagged == shuffled, f"{name}: {argument} is {known}shuffled but is_shuffled is {tagged}")
    return tagged


def _plain(double: Double, name: str, b: Tensor, dtype: torch.dtype, otype: torch.dtype) -> Tensor:
    """B in plain layout; the tag, the version and the arch decide whether a shuffled B is understood."""
    if not is_shuffled(double, name, "B", b):
        return b
    double.marked += 1
    honoured = double.catalog.behaviour["gemm_honours_is_shuffled"]
    double.require(honoured, f"{name}: aiter {double.version} does not know is_shuffled: silent garbage")
    n, k = b.shape
    if double.arch != "gfx942":  # hipblaslt takes the rest on gfx942
        fits = dtype == torch.bfloat16 and n % 64 == 0 and k % 64 == 0 and otype in (torch.bfloat16, torch.float32)
        double.require(fits, f"{name}: no kernel for a shuffled [{n},{k}] {dtype} weight on {double.arch}")
    return unshuffle_16x16(b)
