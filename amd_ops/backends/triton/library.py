"""The kernels as torch ops, ``torch.ops.amd_ops.triton_*``: what a graph can hold.

The public functions of amd_ops become plain torch formulas under torch.compile, which Inductor fuses with their
neighbours. Who wants these kernels in a graph calls the ops below. On a GPU they are ``triton_op``s: torch.compile
sees the launches. The interpreter cannot be traced, so there they are opaque custom ops with a fake implementation.
Gradients flow through all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .configs import FEW, for_columns, for_heads, for_rows
from .gate import launch_gate, launch_gate_backward
from .layout import Via, directly
from .norm import launch_norm, launch_norm_backward, result_type
from .rope import launch_rope
from .target import find

_TARGET = find()
_PROGRAMS = 4 * _TARGET.cu_count
_via: Via = directly if _TARGET.interpreted else torch.library.wrap_triton


def _op(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register ``amd_ops::triton_<name>``."""
    full = f"amd_ops::triton_{name}"
    if not _TARGET.interpreted:
        return torch.library.triton_op(full, run, mutates_args=(), schema=schema)
    made = torch.library.custom_op(full, run, mutates_args=(), schema=schema)
    made.register_fake(fake)
    return made


def _few(x: Tensor) -> bool:
    return x.numel() < FEW * x.shape[-1]


def _empty(shape: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def _norm(x: Tensor, weight: Tensor, eps: float, form: str) -> Tensor:
    cut = for_rows(int(x.shape[-1]), _few(x), _TARGET)
    return launch_norm(x, None, weight, eps, form, cut, _via)[0]


def _fake_norm(x: Tensor, weight: Tensor, eps: float, form: str) -> Tensor:
    return _empty(x.shape, x, result_type(form, x.dtype, weight.dtype))


def _add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> tuple[Tensor, Tensor]:
    return launch_norm(x, residual, weight, eps, form, for_rows(int(x.shape[-1]), _few(x), _TARGET), _via)


def _fake_add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, form: str) -> tuple[Tensor, Tensor]:
    return _fake_norm(x, weight, eps, form), _empty(x.shape, x)


def _norm_grad(
    x: Tensor, weight: Tensor, dy: Tensor, dtotal: Tensor | None, eps: float, form: str
) -> tuple[Tensor, Tensor]:
    cut = for_rows(int(x.shape[-1]), _few(x), _TARGET)
    return launch_norm_backward(x, weight, dy, dtotal, eps, form, cut, _PROGRAMS, _via)


def _fake_norm_grad(
    x: Tensor, weight: Tensor, dy: Tensor, dtotal: Tensor | None, eps: float, form: str
) -> tuple[Tensor, Tensor]:
    return _empty(x.shape, x), _empty(weight.shape, weight)


def _gate(x: Tensor, kind: str) -> Tensor:
    return launch_gate(x, kind, for_columns(int(x.shape[-1]) // 2, _few(x), _TARGET), _via)


def _fake_gate(x: Tensor, kind: str) -> Tensor:
    return _empty((*x.shape[:-1], x.shape[-1] // 2), x)


def _gate_grad(x: Tensor, dy: Tensor, kind: str) -> Tensor:
    return launch_gate_backward(x, dy, kind, for_columns(int(x.shape[-1]) // 2, _few(x), _TARGET), _via)


def _fake_gate_grad(x: Tensor, dy: Tensor, kind: str) -> Tensor:
    return _empty(x.shape, x)


def _rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int, backward: bool) -> tuple[Tensor, Tensor]:
    cut = for_heads(max(int(cos.shape[2]) // 2, 1), q.shape[0] * q.shape[3 - dim] < FEW, _TARGET)
    dtypes = (q.dtype, k.dtype) if backward else None
    if backward:
        q, k = (t if t.stride(3) == 1 else t.contiguous() for t in (q, k))
    return launch_rope(q, k, cos, sin, dim, cut, backward=backward, dtypes=dtypes, via=_via)


def _fake_rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dim: int, backward: bool) -> tuple[Tensor, Tensor]:
    outs = []
    for x in (q, k):
        dtype = x.dtype if backward else torch.promote_types(x.dtype, cos.dtype)
        out = _empty((x.shape[0], x.shape[3 - dim], x.shape[dim], x.shape[3]), x, dtype)
        outs.append(out.transpose(1, 2) if dim == 1 else out)
    return outs[0], outs[1]


_SCALARS = "float eps, str form"
rms_norm = _op("rms_norm", f"(Tensor x, Tensor weight, {_SCALARS}) -> Tensor", _norm, _fake_norm)
add_rms_norm = _op(
    "add_rms_norm",
    f"(Tensor x, Tensor residual, Tensor weight, {_SCALARS}) -> (Tensor, Tensor)",
    _add_norm,
    _fake_add_norm,
)
norm_backward = _op(
    "rms_norm_backward",
    f"(Tensor x, Tensor weight, Tensor dy, Tensor? dtotal, {_SCALARS}) -> (Tensor, Tensor)",
    _norm_grad,
    _fake_norm_grad,
)
gated = _op("gated", "(Tensor x, str kind) -> Tensor", _gate, _fake_gate)
gated_backward = _op("gated_backward", "(Tensor x, Tensor dy, str kind) -> Tensor", _gate_grad, _fake_gate_grad)
apply_rope = _op(
    "apply_rope",
    "(Tensor q, Tensor k, Tensor cos, Tensor sin, int dim, bool backward) -> (Tensor, Tensor)",
    _rope,
    _fake_rope,
)


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, ctx.eps, ctx.form = inputs
    ctx.save_for_backward(x, weight)


def _norm_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    return (*norm_backward(*ctx.saved_tensors, dy, None, ctx.eps, ctx.form), None, None)


def _keep_add_norm(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, _, weight, ctx.eps, ctx.form = inputs
    ctx.save_for_backward(output[1], weight)


def _add_norm_backward(ctx: Any, dy: Tensor, dtotal: Tensor) -> tuple[Any, ...]:
    dx, dw = norm_backward(*ctx.saved_tensors, dy, dtotal, ctx.eps, ctx.form)
    return dx, dx, dw, None, None


def _keep_gate(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, ctx.kind = inputs
    ctx.save_for_backward(x)


def _gate_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    return gated_backward(ctx.saved_tensors[0], dy, ctx.kind), None


def _keep_rope(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, _, cos, sin, ctx.dim, ctx.turned = inputs
    ctx.save_for_backward(cos, sin)


def _rope_backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Any, ...]:
    return (*apply_rope(dq, dk, *ctx.saved_tensors, ctx.dim, not ctx.turned), None, None, None, None)


torch.library.register_autograd("amd_ops::triton_rms_norm", _norm_backward, setup_context=_keep_norm)
torch.library.register_autograd("amd_ops::triton_add_rms_norm", _add_norm_backward, setup_context=_keep_add_norm)
torch.library.register_autograd("amd_ops::triton_gated", _gate_backward, setup_context=_keep_gate)
torch.library.register_autograd("amd_ops::triton_apply_rope", _rope_backward, setup_context=_keep_rope)
