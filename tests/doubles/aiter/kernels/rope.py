"""Rotary embedding: inputs [S,B,H,D] with any strides but a dense last dim, tables [S,1,1,R] or [S,1,1,R/2]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..state import Double
from . import guards

NEOX, GPTJ = 0, 1
TABLE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def rotate(data: Tensor, cos: Tensor, sin: Tensor, arguments: dict[str, Any]) -> Tensor:
    """fp32 result; ``cos``/``sin`` [S,B or 1,1,R or R/2] fp32."""
    neox = int(arguments["rotate_style"]) == NEOX
    if arguments["reuse_freqs_front_part"]:
        cos, sin = ((torch.cat((t, t), -1) if neox else t.repeat_interleave(2, -1)) for t in (cos, sin))
    width = cos.shape[-1]
    data = data.float()
    start = data.shape[-1] - width if arguments["nope_first"] else 0
    part = data[..., start : start + width]
    if neox:
        first, second = part.split(width // 2, -1)
        turned = torch.cat((-second, first), -1)
    else:
        turned = torch.stack((-part[..., 1::2], part[..., 0::2]), -1).flatten(-2)
    result = data.clone()
    result[..., start : start + width] = part * cos + turned * sin
    return result


def _check(double: Double, name: str, arguments: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
    cos, sin = arguments["cos"], arguments["sin"]
    double.require(int(arguments["rotate_style"]) in (NEOX, GPTJ), f"{name}: rotate_style {arguments['rotate_style']}")
    double.require(cos.dtype in TABLE_DTYPES and cos.dtype == sin.dtype, f"{name}: tables {cos.dtype}, {sin.dtype}")
    double.require(cos.dim() == 4 and tuple(cos.shape[1:3]) == (1, 1), f"{name}: cos {tuple(cos.shape)}, not [S,1,1,R]")
    guards.shape(double, name, "sin", sin, tuple(cos.shape))
    guards.contiguous(double, name, cos=cos, sin=sin)
    width = cos.shape[-1] * (2 if arguments["reuse_freqs_front_part"] else 1)
    sequence = arguments[pairs[0][1]].shape[:2]
    for out_name, data_name in pairs:
        out, data = arguments[out_name], arguments[data_name]
        guards.half(double, name, **{out_name: out, data_name: data})
        double.require(data.dim() == 4, f"{name}: {data_name} has {data.dim()} dimensions, [S,B,H,D] expected")
        guards.not_empty(double, name, **{data_name: data})
        guards.shape(double, name, out_name, out, tuple(data.shape))
        for key, tensor in ((out_name, out), (data_name, data)):
            double.require(tensor.stride(-1) == 1, f"{name}: {key} has last-dim stride {tensor.stride(-1)}, not 1")
        double.require(data.shape[:2] == sequence, f"{name}: inputs differ in [S,B]: {tuple(data.shape[:2])}")
        head = data.shape[-1]
        double.require(width <= head and width % 2 == 0, f"{name}: tables turn {width} of {head} values of {data_name}")


def _tables(double: Double, name: str, arguments: dict[str, Any], rows: int, batch: int) -> tuple[Tensor, Tensor]:
    cos, sin = arguments["cos"].float(), arguments["sin"].float()
    positions: Tensor | None = arguments.get("positions")
    if positions is None:
        double.require(cos.shape[0] == rows, f"{name}: tables have {cos.shape[0]} rows for {rows} positions")
        return cos, sin
    double.require(positions.dtype == torch.int64, f"{name}: positions are {positions.dtype}, int64 expected")
    guards.contiguous(double, name, positions=positions)
    guards.shape(double, name, "positions", positions, (rows, batch))
    inside = int(positions.min()) >= 0 and int(positions.max()) < cos.shape[0]
    double.require(inside, f"{name}: a position lies outside the {cos.shape[0]} rows of the tables")
    return cos[positions][:, :, 0], sin[positions][:, :, 0]


def _run(double: Double, name: str, arguments: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
    _check(double, name, arguments, pairs)
    rows, batch = arguments[pairs[0][1]].shape[:2]
    cos, sin = _tables(double, name, arguments, rows, batch)
    for out_name, data_name in pairs:
        arguments[out_name].copy_(rotate(arguments[data_name], cos, sin, arguments))


def rope_one(double: Double, name: str, arguments: dict[str, Any]) -> None:
    _run(double, name, arguments, [("output", "input")])


def rope_two(double: Double, name: str, arguments: dict[str, Any]) -> None:
    _run(double, name, arguments, [("output_x", "input_x"), ("output_y", "input_y")])


def _empty(data: Tensor, transposed: bool) -> Tensor:
    if not transposed:
        return torch.empty_like(data, requires_grad=False)
    rows, batch, heads, size = data.shape
    return torch.empty(batch, rows, heads, size, dtype=data.dtype, device=data.device).transpose(0, 1)


def python_rope(double: Double, function: str, arguments: dict[str, Any]) -> Any:
    """The Python wrappers around the ``*_impl`` ops: allocate the outputs (or reuse the inputs), call, return them."""
    names = ("input",) if "input" in arguments else ("input_x", "input_y")
    in_place = function.endswith("_inplace")
    transposed = bool(arguments.pop("transpose_output", False))
    outputs = [arguments[key] if in_place else _empty(arguments[key], transposed) for key in names]
    call = {key.replace("input", "output"): out for key, out in zip(names, outputs, strict=True)} | arguments
    getattr(torch.ops.aiter, function.removesuffix("_inplace") + "_impl")(**call)
    return outputs[0] if len(outputs) == 1 else tuple(outputs)
