"""Backward kernels of the double's attention: CK ``mha_bwd``/``mha_varlen_bwd`` and the ASM ``fmha_v3_*_bwd`` pair.

They are handed what the forward saved, write dq, dk and dv, and compute in fp32; the weights and the gradients of the
scores are brought to 16 bits before they are multiplied, as they are in the matrix units.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..rounding import narrowed
from ..state import ASM_ARCHES, Double
from . import attention, guards

Result = tuple[Tensor, Tensor, Tensor, Tensor]
_SAVED = ("dout", "q", "k", "v", "out")
_ONE_BLOCK = 256  # keys of which gfx950's kernel needs one block, and so no order of addition


def gradients(
    double: Double, name: str, one: dict[str, Tensor], scale: float, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 gradients of one sequence: dout, q, out [Sq,H,*], k, v [Sk,Hkv,*], lse [H,Sq]."""
    groups = one["q"].shape[1] // one["k"].shape[1]
    query, key, value, out, dout = (one[n].float().transpose(0, 1) for n in ("q", "k", "v", "out", "dout"))
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)

    def halved(x: Tensor) -> Tensor:
        return _stored(double, name, x, one["q"].dtype).float()

    scores = torch.matmul(query, key.transpose(1, 2)) * scale
    weights = torch.exp(scores - one["lse"].unsqueeze(-1)).masked_fill(~mask, 0.0)
    slopes = weights * (torch.matmul(dout, value.transpose(1, 2)) - (dout * out).sum(-1, keepdim=True))
    weights, slopes = halved(weights), halved(slopes)
    dq = torch.matmul(slopes, key) * scale
    dk = torch.matmul(slopes.transpose(1, 2), query) * scale
    dv = torch.matmul(weights.transpose(1, 2), dout)
    dk, dv = (x.unflatten(0, (-1, groups)).sum(1) for x in (dk, dv))
    return dq.transpose(0, 1), dk.transpose(0, 1), dv.transpose(0, 1)


def _stored(double: Double, name: str, result: Tensor, dtype: torch.dtype) -> Tensor:
    """In ``dtype``: the assembly kernels round to the nearest by default, CK's as it is built for the chip."""
    return result.to(dtype) if name.startswith("fmha_v3") else narrowed(result, dtype, double.arch, "attention")


def _check(double: Double, name: str, arguments: dict[str, Any], dims: int) -> None:
    given = {key: arguments[key] for key in _SAVED}
    guards.half(double, name, **given)
    guards.not_empty(double, name, **given)
    for key, tensor in given.items():
        double.require(tensor.dim() == dims, f"{name}: {key} has {tensor.dim()} dimensions, not {dims}")
        double.require(tensor.stride(-1) == 1, f"{name}: {key} has last-dim stride {tensor.stride(-1)}, not 1")
    for key in ("q", "v"):
        size = given[key].shape[-1]
        double.require(size % 8 == 0 and size <= 256, f"{name}: head_dim {size}: multiples of 8 up to 256")
    q, k, v = (given[key] for key in ("q", "k", "v"))
    double.require(q.shape[-2] % k.shape[-2] == 0, f"{name}: {q.shape[-2]} heads over {k.shape[-2]} kv heads")
    guards.shape(double, name, "out", given["out"], (*q.shape[:-1], v.shape[-1]))
    guards.shape(double, name, "dout", given["dout"], (*q.shape[:-1], v.shape[-1]))
    for key, of in (("dq", q), ("dk", k), ("dv", v)):
        double.require(arguments[key] is not None, f"{name}: {key} is missing: the double allocates none")
        guards.shape(double, name, key, arguments[key], tuple(of.shape))
        double.require(arguments[key].dtype is of.dtype, f"{name}: {key} is {arguments[key].dtype}")
    lse = arguments["softmax_lse"]
    double.require(lse.dtype is torch.float32 and bool(torch.isfinite(lse).all()), f"{name}: lse of a row without keys")
    double.require(arguments["dropout_p"] == 0.0, f"{name}: dropout is not modelled")
    unused = ("dbias", "bias", "alibi_slopes", "gen", "sink", "d_sink", "cu_seqlens_q_padded", "cu_seqlens_k_padded")
    guards.unused(double, name, **{key: arguments[key] for key in unused if key in arguments})


def _window(arguments: dict[str, Any], keys: int) -> attention.Window:
    sides = (int(arguments["window_size_left"]), int(arguments["window_size_right"]))
    left, right = (-1 if side >= keys else side for side in sides)
    return left, right, 0


def _write(arguments: dict[str, Any], double: Double, name: str, at: Any, rows: Any, found: tuple[Tensor, ...]) -> None:
    for key, where, value in zip(("dq", "dk", "dv"), (at, rows, rows), found, strict=True):
        arguments[key][where] = _stored(double, name, value, arguments[key].dtype)


def mha_bwd(double: Double, name: str, arguments: dict[str, Any]) -> Result:
    """Dense: dout, q, out [B,Sq,H,*], k, v [B,Sk,Hkv,*], softmax_lse [B,H,Sq]."""
    _check(double, name, arguments, 4)
    q, k = arguments["q"], arguments["k"]
    mask = attention.visible(q.shape[1], k.shape[1], bool(arguments["is_causal"]), _window(arguments, k.shape[1]))
    for row in range(q.shape[0]):
        one = {key: arguments[key][row] for key in _SAVED} | {"lse": arguments["softmax_lse"][row]}
        _write(arguments, double, name, row, row, gradients(double, name, one, arguments["softmax_scale"], mask))
    return _result(arguments)


def mha_varlen_bwd(double: Double, name: str, arguments: dict[str, Any]) -> Result:
    """Packed: dout, q, out [total_q,H,*], k, v [total_k,Hkv,*], softmax_lse [H,total_q]."""
    _check(double, name, arguments, 3)
    window = _window(arguments, int(arguments["max_seqlen_k"]))
    for queries, keys in _spans(double, name, arguments):
        mask = attention.visible(
            queries.stop - queries.start, keys.stop - keys.start, bool(arguments["is_causal"]), window
        )
        one = {key: arguments[key][queries] for key in ("dout", "q", "out")}
        one |= {"k": arguments["k"][keys], "v": arguments["v"][keys], "lse": arguments["softmax_lse"][:, queries]}
        found = gradients(double, name, one, arguments["softmax_scale"], mask)
        _write(arguments, double, name, queries, keys, found)
    return _result(arguments)


def _spans(double: Double, name: str, arguments: dict[str, Any]) -> Iterator[tuple[slice, slice]]:
    ends = [
        attention.offsets(double, name, f"cu_seqlens_{side}", arguments[f"cu_seqlens_{side}"], arguments[side],
                          int(arguments[f"max_seqlen_{side}"]))
        for side in ("q", "k")
    ]  # fmt: skip
    for (start, stop), (first, last) in zip(*(itertools.pairwise(e) for e in ends), strict=True):
        yield slice(start, stop), slice(first, last)


def _result(arguments: dict[str, Any]) -> Result:
    return arguments["dq"], arguments["dk"], arguments["dv"], torch.empty(0)


def _asm(double: Double, name: str, arguments: dict[str, Any]) -> None:
    q, v = arguments["q"], arguments["v"]
    sizes = q.shape[-1], v.shape[-1]
    known = (sizes[0] == sizes[1] and 64 <= sizes[0] <= 192) or sizes == (192, 128)
    double.require(known, f"{name}: head_dim {sizes[0]}/{sizes[1]}")
    double.require(not arguments["deterministic"], f"{name}: adds in no fixed order")
    left = int(arguments["window_size_left"])
    double.require(left != 0, f"{name}: a window of one key is taken for none")


def fmha_v3_bwd(double: Double, name: str, arguments: dict[str, Any]) -> Result:
    _asm(double, name, arguments)
    return mha_bwd(double, name, arguments)


def fmha_v3_varlen_bwd(double: Double, name: str, arguments: dict[str, Any]) -> Result:
    _asm(double, name, arguments)
    double.require(int(arguments["window_size_left"]) == -1, f"{name}: a packed window is lost in this kernel")
    return mha_varlen_bwd(double, name, arguments)


def takes_asm(double: Double, arguments: dict[str, Any], window: attention.Window, packed: bool) -> bool:
    """aiter's own rule, for fp32 accumulation (which its functions ask for)."""
    q, k, v = arguments["q"], arguments["k"], arguments["v"]
    size, sliding = q.shape[-1], window[0] > 0 or window[1] > 0
    deterministic, keys = bool(arguments["deterministic"]), k.shape[-3]
    if double.arch not in ASM_ARCHES or (not packed and q.shape[1] <= 16):
        return False
    if double.arch == "gfx950":
        one_block = not packed and keys <= _ONE_BLOCK and 64 < size <= 128
        sizes = (size == v.shape[-1] and 64 < size <= 128) or (not packed and (size, v.shape[-1]) == (192, 128))
        return sizes and not sliding and (not deterministic or one_block)
    if deterministic or size != v.shape[-1] or not 64 <= size <= 192:
        return False
    if packed:
        return not sliding
    causal = bool(arguments["causal"]) and window[0] == -1
    full = not arguments["causal"] and window[:2] == (-1, -1)
    if size == 64:
        return not sliding
    return causal or full or (sliding and size <= 128) or (size == 128 and _unpadded(arguments) and not sliding)


def _unpadded(arguments: dict[str, Any]) -> bool:
    """Equal lengths that are multiples of 64, one layout, no grouped heads: the kernel that reads without bounds."""
    q, k, v, dout = (arguments[key] for key in ("q", "k", "v", "dout"))
    same = q.shape[1] == k.shape[1] and k.shape[1] % 64 == 0 and q.shape[2] == k.shape[2]
    return bool(same and q.stride()[:3] == dout.stride()[:3] and k.stride()[:3] == v.stride()[:3])
