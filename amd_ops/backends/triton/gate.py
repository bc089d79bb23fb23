"""silu_and_mul, gelu_and_mul and gelu_tanh_and_mul on the kernels of kernels/gate.py, with their backward."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..backward import once
from ..probing import made_up, needs_grad, prove
from . import launch, tuning
from .common import apply, unfit
from .configs import FEW, Config, for_columns
from .kernels import gate as kernels
from .layout import Via, directly, rows_of, specialised
from .target import Target

KINDS = {"silu_and_mul": "silu", "gelu_and_mul": "gelu", "gelu_tanh_and_mul": "gelu_tanh"}


def launch_gate(x: Tensor, kind: str, config: Config, via: Via = directly) -> Tensor:
    """x [..., 2d] -> [..., d]."""
    rows = rows_of(x)
    if rows is None:
        x = x.contiguous()
        rows = 1, 1, x.shape[-1], 0, 0, 1
    size = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], size), dtype=x.dtype, device=x.device)
    blocks = -(-size // config.block)
    via(kernels.gate)[(blocks * (out.numel() // size),)](
        x, out, blocks, *rows, D=size, KIND=kind, BLOCK=config.block, num_warps=config.warps
    )
    return out


def launch_gate_backward(x: Tensor, dy: Tensor, kind: str, config: Config, via: Via = directly) -> Tensor:
    """Gradient [..., 2d] of x [..., 2d] for dy [..., d]."""
    rows, grads = rows_of(x), rows_of(dy)
    if rows is None or grads is None:
        x, dy = x.contiguous(), dy.contiguous()
        rows, grads = (1, 1, x.shape[-1], 0, 0, 1), (1, 1, dy.shape[-1], 0, 0, 1)
    size = x.shape[-1] // 2
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    blocks = -(-size // config.block)
    via(kernels.gate_backward)[(blocks * (dy.numel() // size),)](
        x, dy, out, blocks, *rows, *grads, D=size, KIND=kind, BLOCK=config.block, num_warps=config.warps
    )
    return out


class GateFunction(torch.autograd.Function):
    """The gate with its backward; x is kept, the activation is computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, config: Config) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rest = kind, config
        return launch_gate(x, kind, config)

    @staticmethod
    @once("a gated activation in tier triton")
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return launch_gate_backward(x, dy, *ctx.rest), None, None


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of a gated activation."""
    kind = KINDS[op]
    table = tuning.Table("gate", target)

    def few(x: Tensor) -> bool:
        return x.numel() < FEW * x.shape[-1]

    def config(x: Tensor) -> Config:
        size, small = x.shape[-1] // 2, few(x)
        return table.get((x.dtype, size, small)) or table.put((x.dtype, size, small), for_columns(size, small, target))

    def check(x: Tensor) -> str:
        if x.dim() < 1 or x.shape[-1] % 2:
            return "the last dimension is odd"
        return unfit(target, x)

    def run(x: Tensor) -> Tensor:
        if needs_grad(x):
            result: Tensor = apply(GateFunction, x, kind, config(x))
            return result
        return launch_gate(x, kind, config(x))

    def variant(x: Tensor) -> Hashable:
        rows = rows_of(x)
        return x.dtype, x.shape[-1], few(x), needs_grad(x), None if rows is None else specialised(rows[2:])

    def probe(x: Tensor) -> str:
        sample = made_up((3 if few(x) else FEW + 3, x.shape[-1]), x.dtype, x.device, 1).requires_grad_(needs_grad(x))
        size, small = x.shape[-1] // 2, few(x)
        table.tune((x.dtype, size, small), config(x), lambda cut: launch_gate(x.detach(), kind, cut))
        return prove(run, reference, [sample], ())

    def bind(x: Tensor) -> Callable[..., Tensor] | None:
        if x.dim() != 2 or not x.is_contiguous() or needs_grad(x):
            return None
        count, size, cut = x.shape[0], x.shape[1] // 2, config(x)
        blocks = -(-size // cut.block)
        numbers = (blocks, 1, 1, x.shape[1], 0, 0, 1)
        constants = {"D": size, "KIND": kind, "BLOCK": cut.block}
        start = launch.settled(kernels.gate, (blocks * count,), numbers, constants, cut.warps)
        shape = (count, size)

        def fast(x: Tensor) -> Tensor:
            out = x.new_empty(shape)
            start(x, out)
            return out

        return fast

    return Candidate(run, check, variant, probe, bind=bind)
