"""sigmoid_gate and add_shared: one launch each, of kernels/gating.py. Inference only."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate, Choice
from ..probing import made_up, needs_grad, prove
from .common import unfit
from .configs import FEW, MAX_BLOCK, for_rows, waves
from .experts import GRADIENT
from .kernels import gating as kernels
from .layout import Via, directly, power_of_two, rows_of, specialised
from .target import Target

MANY = Choice(f"more than {FEW} tokens: each program would make its token's gate anew")
_COLUMNS = 1024


def launch_gate(x: Tensor, gate: Tensor, target: Target, *, via: Via = directly) -> Tensor:
    """x [..., N], dense, gate [..., D] of as many numbers -> [..., N]."""
    size = gate.shape[-1]
    rows = gate.numel() // size
    layout = rows_of(gate)
    assert layout is not None
    cut = for_rows(size, rows < FEW, target)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    via(kernels.sigmoid_gate)[(-(-rows // cut.rows),)](
        x, gate, y, rows, *layout[:5], D=size, ROWS=cut.rows, BLOCK=cut.block, num_warps=cut.warps
    )
    return y


def _sigmoid_gate(reference: Callable[..., Any], target: Target) -> Candidate:
    def check(x: Tensor, gate: Tensor) -> str:
        if needs_grad(x, gate):
            return GRADIENT
        if gate.dim() < 1 or x.numel() != gate.numel():
            return "the gate has not as many numbers as x"
        if x.dtype is not gate.dtype:
            return "x and the gate are not of one dtype"
        if reason := unfit(target, x, gate):
            return reason
        if not x.is_contiguous() or gate.stride(-1) != 1 or rows_of(gate) is None or gate.shape[-1] > MAX_BLOCK:
            return f"x is not dense, or the gate has no dense rows of at most {MAX_BLOCK} numbers"
        return ""

    def run(x: Tensor, gate: Tensor) -> Tensor:
        return launch_gate(x, gate, target)

    def variant(x: Tensor, gate: Tensor) -> Hashable:
        layout, size = rows_of(gate), gate.shape[-1]
        assert layout is not None
        return x.dtype, size, gate.numel() // size < FEW, specialised(layout[2:5])

    def probe(x: Tensor, gate: Tensor) -> str:
        size = gate.shape[-1]
        x = made_up((2, 3 * size), x.dtype, x.device, 17)
        return prove(run, reference, [x, made_up((2, 3, 2 * size), x.dtype, x.device, 18)[..., :size]], ())

    return Candidate(run, check, variant, probe)


def launch_shared(
    experts: Tensor, shared: Tensor, hidden: Tensor, weight: Tensor, wave: int, *, via: Via = directly
) -> Tensor:
    """experts and shared [T, N], hidden [T, H], weight [1, H] -> [T, N], dense."""
    (tokens, columns), size = experts.shape, hidden.shape[1]
    block, inner = min(_COLUMNS, power_of_two(columns)), min(2 * _COLUMNS, power_of_two(size))
    y = torch.empty(experts.shape, dtype=experts.dtype, device=experts.device)
    via(kernels.add_shared)[(tokens, -(-columns // block))](
        experts, shared, hidden, weight, y, experts.stride(0), shared.stride(0), hidden.stride(0),
        N=columns, H=size, BLOCK=block, BLOCK_H=inner, num_warps=waves(max(block, inner), wave),
    )  # fmt: skip
    return y


def _add_shared(reference: Callable[..., Any], target: Target) -> Candidate:
    def check(experts: Tensor, shared: Tensor, hidden: Tensor, weight: Tensor) -> str:
        tensors = (experts, shared, hidden, weight)
        if needs_grad(*tensors):
            return GRADIENT
        if any(one.dim() != 2 for one in tensors) or shared.shape != experts.shape:
            return "the experts' outputs are not [T, N]"
        if len(hidden) != len(experts) or weight.shape != (1, hidden.shape[1]):
            return "the tokens and the weight of their gate are not [T, H] and [1, H]"
        if any(one.dtype is not experts.dtype for one in tensors):
            return "the experts, the tokens and the weight are not of one dtype"
        if reason := unfit(target, *tensors):
            return reason
        if any(one.stride(1) != 1 for one in tensors):
            return "the rows are not dense"
        return MANY if len(experts) > FEW else ""

    def run(experts: Tensor, shared: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        return launch_shared(experts, shared, hidden, weight, target.wave)

    def variant(experts: Tensor, shared: Tensor, hidden: Tensor, weight: Tensor) -> Hashable:
        return experts.dtype, experts.shape[1], hidden.shape[1]

    def probe(experts: Tensor, shared: Tensor, hidden: Tensor, weight: Tensor) -> str:
        (columns, size), like = (experts.shape[1], hidden.shape[1]), (experts.dtype, experts.device)
        shapes = ((3, columns), (3, columns), (3, size), (1, size))
        made = [made_up(shape, *like, seed) for seed, shape in enumerate(shapes, 19)]
        made[3] = made[3] / size**0.5
        return prove(run, reference, made, ())

    return Candidate(run, check, variant, probe)


_MAKERS = {"sigmoid_gate": _sigmoid_gate, "add_shared": _add_shared}


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of one of the two."""
    return _MAKERS[op](reference, target)
