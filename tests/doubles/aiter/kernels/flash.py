"""aiter's public attention functions: padding of odd head sizes, copies of strided inputs, choice of the kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..state import Double
from . import attention_backward
from .attention import Window, takes_asm

ASM_ROWS = 128  # the dense ASM kernel is chosen above this many query rows


def flash_attn_func(double: Double, arguments: dict[str, Any]) -> Any:
    """Dense [B,S,H,D]; any head_dim up to 256 (padded to a multiple of 8); asserts return_lse when grad is needed."""
    return _applied(double, "flash_attn_func", _dense, arguments)


def flash_attn_varlen_func(double: Double, arguments: dict[str, Any]) -> Any:
    """Packed [total,H,D] with int32 cu_seqlens; the only function with logits_soft_cap. ASM at any length."""
    return _applied(double, "flash_attn_varlen_func", _packed, arguments)


def _applied(double: Double, name: str, run: Any, arguments: dict[str, Any]) -> Any:
    arguments = arguments | {"is_grad_enabled": torch.is_grad_enabled()}
    return _Flash.apply(double, name, run, arguments, *(arguments[key] for key in "qkv"))


class _Flash(torch.autograd.Function):
    """aiter's FlashAttnFunc and FlashAttnVarlenFunc: what they keep, what their backward leaves out."""

    @staticmethod
    def forward(ctx: Any, double: Double, name: str, run: Any, arguments: dict[str, Any], *qkv: Tensor) -> Any:
        arguments = arguments | dict(zip("qkv", qkv, strict=True))
        outputs, prepared, window = run(double, name, arguments)
        if arguments["is_grad_enabled"] and any(ctx.needs_input_grad):
            _differentiable(double, name, arguments)
            ctx.save_for_backward(*prepared, outputs[0], outputs[1])
            ctx.rest = double, name, arguments, window
        out = outputs[0][..., : arguments["v"].shape[-1]]
        return (out, outputs[1]) if arguments["return_lse"] else out

    @staticmethod
    def backward(ctx: Any, dout: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        double, name, arguments, window = ctx.rest
        dout = _padded(dout)
        saved = {"dout": dout, "q": q, "k": k, "v": v, "out": out}
        packed = name == "flash_attn_varlen_func"
        asm = attention_backward.takes_asm(double, arguments | saved, window, packed)
        saved = {key: x if x.stride(-1) == 1 else x.contiguous() for key, x in saved.items()}
        common = _common(arguments, q, k, v, window) | saved | {"softmax_lse": lse}
        common |= {f"d{key}": torch.empty_like(x) for key, x in (("q", q), ("k", k), ("v", v))}
        common |= {"deterministic": bool(arguments["deterministic"]) and not asm}
        common |= {**{key: arguments[key] for key in _LENGTHS}, "zero_tensors": False} if packed else {}
        op = ("fmha_v3_varlen_bwd" if asm else "mha_varlen_bwd") if packed else "fmha_v3_bwd" if asm else "mha_bwd"
        extra = {"is_v3_atomic_fp32": True, "how_v3_bf16_cvt": 1}
        packet = getattr(torch.ops.aiter, op)
        accepted = {argument.name for argument in packet.default._schema.arguments}
        with torch.no_grad():  # with create_graph=True, too: the op has no autograd kernel
            packet(**{key: value for key, value in (common | extra).items() if key in accepted})
        found = (common[f"d{key}"][..., : arguments[key].shape[-1]] for key in "qkv")
        return None, None, None, None, *found


def _differentiable(double: Double, name: str, arguments: dict[str, Any]) -> None:
    message = f"{name}: grad is needed and return_lse is not set (real: AssertionError after the kernel ran)"
    double.require(bool(arguments["return_lse"]), message)
    capped = float(arguments.get("logits_soft_cap", 0.0))
    double.require(capped == 0.0, f"{name}: grad is needed and the backward knows no soft cap (real: wrong gradients)")
    lost = arguments.get("sink_ptr") is not None
    double.require(not lost, f"{name}: grad is needed and the backward returns none for sinks")


_LENGTHS = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")


def _dense(double: Double, name: str, arguments: dict[str, Any]) -> tuple[Any, list[Tensor], Window]:
    q, k, v = prepared = _prepared(arguments)
    window = _window(double, name, arguments["window_size"], k.shape[1])
    _check(double, name, arguments)
    asm = takes_asm(double, q, v, window) and q.shape[1] > ASM_ROWS
    _sinks_reach_the_kernel(double, name, arguments, asm)
    common = _common(arguments, q, k, v, window)
    return _run("fmha_v3_fwd" if asm else "mha_fwd", common, window, arguments), prepared, window


def _packed(double: Double, name: str, arguments: dict[str, Any]) -> tuple[Any, list[Tensor], Window]:
    q, k, v = prepared = _prepared(arguments)
    minimum = arguments.get("min_seqlen_q", 0)
    double.require(type(minimum) is int, f"{name}: min_seqlen_q is {minimum!r}: positional arguments shifted in v0.1.3")
    window = _window(double, name, arguments["window_size"], int(arguments["max_seqlen_k"]))
    _check(double, name, arguments)
    soft_cap = float(arguments["logits_soft_cap"])
    asm = takes_asm(double, q, v, window, soft_cap)
    _sinks_reach_the_kernel(double, name, arguments, asm)
    common = _common(arguments, q, k, v, window) | {key: arguments[key] for key in _LENGTHS}
    common.update(min_seqlen_q=minimum, logits_soft_cap=soft_cap, zero_tensors=False)
    return _run("fmha_v3_varlen_fwd" if asm else "mha_varlen_fwd", common, window, arguments), prepared, window


def _padded(tensor: Tensor) -> Tensor:
    """To a multiple of 8 columns; what has them stays the very tensor, whose changes autograd sees."""
    return tensor if tensor.shape[-1] % 8 == 0 else pad(tensor, (0, -tensor.shape[-1] % 8))


def _prepared(arguments: dict[str, Any]) -> list[Tensor]:
    prepared = []
    for key in ("q", "k", "v"):
        tensor: Tensor = arguments[key]
        tensor = _padded(tensor)
        prepared.append(tensor if tensor.stride(-1) == 1 else tensor.contiguous())
    return prepared


def _window(double: Double, name: str, window: Any, keys: int) -> Window:
    limits = len(window) in (2, 3) if "sink_size" in double.catalog.ops["mha_fwd"]["schema"] else len(window) == 2
    double.require(limits, f"{name}: window_size {window!r} has the wrong length for aiter {double.version}")
    left, right = (-1 if side >= keys else int(side) for side in window[:2])
    return left, right, int(window[2]) if len(window) == 3 else 0


def _check(double: Double, name: str, arguments: dict[str, Any]) -> None:
    for key in ("bias", "alibi_slopes", "block_table", "out", "cu_seqlens_q_padded", "cu_seqlens_k_padded"):
        double.require(arguments.get(key) is None, f"{name}: {key} is not modelled by the double")
    double.require(not arguments["return_attn_probs"], f"{name}: return_attn_probs is not modelled by the double")
    if name == "flash_attn_func":
        dense = arguments.get("cu_seqlens_q") is None and arguments.get("cu_seqlens_kv") is None
        double.require(dense, f"{name}: cu_seqlens is not modelled by the double")


def _sinks_reach_the_kernel(double: Double, name: str, arguments: dict[str, Any], asm: bool) -> None:
    lost = asm and arguments.get("sink_ptr") is not None
    double.require(not lost, f"{name}: this shape goes to the ASM kernel, which has no sinks: they would be dropped")


def _common(arguments: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, window: Window) -> dict[str, Any]:
    scale = arguments["softmax_scale"]
    return {
        "q": q,
        "k": k,
        "v": v,
        "dropout_p": arguments["dropout_p"],
        "softmax_scale": 1.0 / math.sqrt(arguments["q"].shape[-1]) if scale is None else scale,
        "is_causal": arguments["causal"],
        "window_size_left": window[0],
        "window_size_right": window[1],
        "return_softmax_lse": arguments["return_lse"],
        "return_dropout_randval": False,
    }


def _run(op: str, common: dict[str, Any], window: Window, arguments: dict[str, Any]) -> Any:
    packet = getattr(torch.ops.aiter, op)
    accepted = {argument.name for argument in packet.default._schema.arguments}
    extra = {"sink_size": window[2], "how_v3_bf16_cvt": 1, "sink_ptr": arguments.get("sink_ptr")}
    common.update({key: value for key, value in extra.items() if key in accepted})
    return packet(**common)
