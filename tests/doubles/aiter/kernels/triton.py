"""The kernels of ``aiter.ops.triton`` in fp32, with the preconditions of the real ones and some that those lack."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..state import Double
from . import guards
from .attention import attend, visible
from .rope import rotate

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ALIGNMENT = 16


def _window(double: Double, name: str, arguments: dict[str, Any]) -> tuple[int, int, int]:
    """Real: the past alone, and a bound of 0 counts as none; before v0.1.12 any window is an error."""
    left, right = arguments["window_size"]
    windows = int(double.version.split(".")[2]) >= 12
    if not windows and (left, right) != (-1, -1):
        raise ValueError("Sliding Window is not supported yet in the Triton Backend")
    if right != -1:
        raise ValueError("window_size_right is not supported yet in the Triton Backend")
    double.require(left != 0, f"{name}: a window of one key counts as none in this kernel")
    return left, right, 0


def _options(double: Double, name: str, arguments: dict[str, Any]) -> None:
    unused = ("bias", "alibi_slopes", "block_table", "out")
    guards.unused(double, name, **{key: arguments[key] for key in unused if key in arguments})
    double.require(arguments["dropout_p"] == 0.0, f"{name}: dropout is not modelled")
    double.require(not arguments["return_lse"] and not arguments["return_attn_probs"], f"{name}: one result only")
    config = arguments["config"]
    if config is None:
        if double.arch not in double.catalog.triton["cuts"]:
            raise FileNotFoundError(f"{double.arch}-MHA-DEFAULT.json")
        return
    if sorted(config) != double.catalog.triton["cut"]:
        raise KeyError(f"Keyword arguments {sorted(config)} were specified but unrecognised")
    sizes = (config["BLOCK_M"], config["BLOCK_N"], config["num_warps"])
    double.require(all(size & (size - 1) == 0 for size in sizes), f"{name}: {sizes} are no powers of two")


def _heads(double: Double, name: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    guards.half(double, name, q=q, k=k, v=v)
    guards.not_empty(double, name, q=q, k=k, v=v)
    for key, tensor in (("q", q), ("k", k), ("v", v)):
        double.require(tensor.stride(-1) == 1, f"{name}: {key} has last-dim stride {tensor.stride(-1)}, not 1")
        double.require(tensor.shape[-1] % 8 == 0 and tensor.shape[-1] <= 256, f"{name}: head_dim {tensor.shape[-1]}")
    double.require(q.shape[-2] % k.shape[-2] == 0, f"{name}: {q.shape[-2]} query heads, {k.shape[-2]} kv heads")
    size, rest = v.shape[-1], q.shape[-1] - v.shape[-1]
    powers = min(size, rest) >= 16 and size & (size - 1) == 0 and rest & (rest - 1) == 0
    assert rest == 0 or powers, "Positional encoding support requires NOPE and PE head sizes to be unpadded powers of 2"


def _sinks(double: Double, name: str, arguments: dict[str, Any], heads: int) -> Tensor | None:
    sinks: Tensor | None = arguments.get("sink")
    if sinks is not None:
        guards.shape(double, name, "sink", sinks, (heads,))
        guards.contiguous(double, name, sink=sinks)
    return sinks


def _prepared(double: Double, name: str, arguments: dict[str, Any]) -> tuple[tuple[int, int, int], float, Any]:
    q, k, v = arguments["q"], arguments["k"], arguments["v"]
    _options(double, name, arguments)
    _heads(double, name, q, k, v)
    scale = arguments["softmax_scale"]
    sinks = _sinks(double, name, arguments, q.shape[-2])
    return _window(double, name, arguments), 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale, sinks


def flash_attn_func(double: Double, name: str, arguments: dict[str, Any]) -> Tensor:
    """Dense [B, S, H, D]."""
    q, k, v = arguments["q"], arguments["k"], arguments["v"]
    window, scale, sinks = _prepared(double, name, arguments)
    double.require(q.dim() == k.dim() == v.dim() == 4, f"{name}: [B,S,H,D] expected")
    double.require(q.shape[0] == k.shape[0] and k.shape[:3] == v.shape[:3], f"{name}: q, k and v do not fit")
    mask = visible(q.shape[1], k.shape[1], bool(arguments["causal"]), window)
    rows = [attend(*row, scale, mask, sinks=sinks)[0] for row in zip(q, k, v, strict=True)]
    return torch.stack(rows).to(q.dtype)


def flash_attn_varlen_func(double: Double, name: str, arguments: dict[str, Any]) -> Tensor:
    """Packed [total, H, D] with int32 offsets."""
    q, k, v = arguments["q"], arguments["k"], arguments["v"]
    window, scale, sinks = _prepared(double, name, arguments)
    double.require(q.dim() == k.dim() == v.dim() == 3, f"{name}: [total,H,D] expected")
    spans = []
    for side, data in (("q", q), ("k", k)):
        ends, longest = arguments[f"cu_seqlens_{side}"], arguments[f"max_seqlen_{side}"]
        double.require(ends.dtype == torch.int32 and ends.is_contiguous(), f"{name}: cu_seqlens_{side} is {ends.dtype}")
        found = list(itertools.pairwise(ends.tolist()))
        double.require(found[0][0] == 0 and found[-1][1] == data.shape[0], f"{name}: cu_seqlens_{side} {ends.tolist()}")
        double.require(all(0 <= b - a <= longest for a, b in found), f"{name}: max_seqlen_{side} {longest} is exceeded")
        spans.append(found)
    out = torch.zeros(*q.shape[:2], v.shape[2], dtype=q.dtype)
    for (start, stop), (first, last) in zip(*spans, strict=True):
        mask = visible(stop - start, last - first, bool(arguments["causal"]), window)
        out[start:stop] = attend(q[start:stop], k[first:last], v[first:last], scale, mask, sinks=sinks)[0]
    return out


def _norm(double: Double, name: str, arguments: dict[str, Any], data: Tensor) -> Tensor:
    given = guards.tensors(arguments)
    double.require(all(tensor.dtype in FLOATS for tensor in given.values()), f"{name}: dtypes")
    double.require(arguments["input"].dim() == 2, f"{name}: [rows, width] expected")
    guards.contiguous(double, name, **given)
    guards.not_empty(double, name, input=data)
    guards.shape(double, name, "weight", arguments["weight"], (data.shape[1],))
    width = data.shape[1] * arguments["input"].element_size()
    double.require(width % ALIGNMENT == 0, f"{name}: rows of {width} bytes: the kernel promises aligned ones")
    scaled = data * torch.rsqrt(data.square().mean(-1, keepdim=True) + arguments["epsilon"])
    return scaled * arguments["weight"].float()


def rms_norm(double: Double, name: str, arguments: dict[str, Any]) -> Tensor:
    """One rounding, at the end; the result has the input's dtype whatever the weight's."""
    return _norm(double, name, arguments, arguments["input"].float()).to(arguments["input"].dtype)


def rmsnorm2d_fwd_with_add(double: Double, name: str, arguments: dict[str, Any]) -> None:
    """``residual_out = input + residual_in; out = norm(residual_out)``, the sum not rounded in between."""
    out, after = arguments["out"], arguments["residual_out"]
    double.require(out.data_ptr() != after.data_ptr(), f"{name}: out and residual_out are the same memory")
    total = arguments["input"].float() + arguments["residual_in"].float()
    out.copy_(_norm(double, name, arguments, total))
    after.copy_(total)


def rope_cached_thd_positions_2c_fwd(double: Double, name: str, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """[tokens, heads, D] of q and k by tables [rows, R] and the row of each token."""
    x, y, cos, positions = arguments["x"], arguments["y"], arguments["cos"], arguments["positions"]
    double.require(x.dim() == y.dim() == 3 and cos.dim() == 2, f"{name}: [T,H,D] and [P,R] expected")
    guards.same_dtype(double, name, x=x, y=y, cos=cos, sin=arguments["sin"])
    guards.not_empty(double, name, x=x, y=y)
    for tensor in (x, y, cos, arguments["sin"]):
        double.require(tensor.stride(-1) == 1 and min(tensor.stride()) > 0, f"{name}: strides {tensor.stride()}")
    assert x.shape[0] == y.shape[0], "The number of tokens should be the same for the two inputs"
    assert x.shape[1] % y.shape[1] == 0, "QH should be multiple of KH"
    heads = x.shape[1]
    past = heads == y.shape[1] and heads & (heads - 1) != 0
    double.require(not past, f"{name}: equal heads are walked up to a power of two, past the end of {heads}")
    size, width = x.shape[2], cos.shape[1]
    double.require(size & (size - 1) == 0, f"{name}: head_dim {size} is no power of two")
    double.require(width in (size, size // 2), f"{name}: tables turn {width} of {size}")
    double.require(not arguments["reuse_freqs_front_part"] and not arguments["nope_first"], f"{name}: flags")
    double.require(positions.shape == x.shape[:1] and positions.dtype == torch.int64, f"{name}: positions")
    inside = bool(((positions >= 0) & (positions < cos.shape[0])).all())
    double.require(inside, f"{name}: a position off the table")
    tables = [arguments[key].float()[positions].unsqueeze(1) for key in ("cos", "sin")]
    return tuple(rotate(t, *tables, arguments).to(t.dtype) for t in (x, y))  # type: ignore[return-value]


def fused_silu_mul(double: Double, name: str, arguments: dict[str, Any]) -> Tensor:
    """Gate, then up, in one contiguous tensor; the activation is rounded before the product."""
    x = arguments["x"]
    guards.unused(double, name, out=arguments["out"])
    double.require(x.dtype in FLOATS, f"{name}: {x.dtype}")
    guards.not_empty(double, name, x=x)
    assert x.is_contiguous(), "x must be contiguous"
    assert x.size(-1) % 2 == 0, "last dimension must be even (2 * d)"
    gate, up = x.chunk(2, -1)
    return (torch.nn.functional.silu(gate.float()).to(x.dtype).float() * up.float()).to(x.dtype)


KERNELS: dict[str, Callable[[Double, str, dict[str, Any]], Any]] = {
    "flash_attn_func": flash_attn_func,
    "flash_attn_varlen_func": flash_attn_varlen_func,
    "rms_norm": rms_norm,
    "rmsnorm2d_fwd_with_add": rmsnorm2d_fwd_with_add,
    "rope_cached_thd_positions_2c_fwd": rope_cached_thd_positions_2c_fwd,
    "fused_silu_mul": fused_silu_mul,
}
