"""conv_step, delta_step and gated_rms_norm: one launch each, of kernels/delta.py. Inference only, and one token."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate, Choice
from ..probing import disagreement, made_up, needs_grad, prove
from .common import unfit
from .configs import for_rows, waves
from .experts import GRADIENT
from .kernels import delta as kernels
from .layout import Via, directly, power_of_two, specialised
from .target import Target

MANY = Choice("more than one token a sequence")
WIDEST = 16
"""Columns of a convolution."""
_CHANNELS = 256
_COLUMNS = 32
"""Of a head's state that a program holds: 128 x 32 numbers are 16 a thread of four waves."""
_MOST = 256
"""Queries and keys of a head: what a program holds grows with them."""


def _dense(x: Tensor) -> bool:
    """Whether no two places of x [B, C, W] are one, as torch asks of what it writes to: no gaps, channels or columns
    innermost.
    """
    return x.is_contiguous() or x.mT.is_contiguous()


def launch_conv(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activated: bool, *, wave: int, via: Via = directly
) -> Tensor:
    """x [B, C, 1], state [B, C, W] -> [B, C, 1], dense; the state moves on."""
    batch, channels, width = state.shape
    y = x.new_empty(x.shape)
    block, columns = min(_CHANNELS, power_of_two(channels)), power_of_two(width)
    via(kernels.conv_step)[(batch, -(-channels // block))](
        x, state, weight, weight if bias is None else bias, y, channels, x.stride(0), x.stride(1), *state.stride(),
        W=width, BIAS=bias is not None, SILU=activated, BLOCK=block, BLOCK_W=columns,
        num_warps=waves(block * columns, wave),
    )  # fmt: skip
    return y


def _conv_step(reference: Callable[..., Any], target: Target) -> Candidate:
    def check(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activated: bool) -> str:
        tensors = (x, state, weight) if bias is None else (x, state, weight, bias)
        if needs_grad(*tensors):
            return GRADIENT
        if x.dim() != 3 or state.dim() != 3 or state.shape[:2] != x.shape[:2] or weight.shape != state.shape[1:]:
            return "x, the state and the weight are not [B, C, S], [B, C, W] and [C, W]"
        if x.shape[2] != 1:
            return MANY
        if any(one.dtype is not x.dtype for one in tensors):
            return "x, the state, weight and bias are not of one dtype"
        if state.shape[2] > WIDEST or (bias is not None and bias.shape != x.shape[1:2]):
            return f"the convolution has more than {WIDEST} columns, or a bias that is not one per channel"
        if (reason := unfit(target, *tensors)) or not _dense(state):
            return reason or "the state is not dense"
        if not weight.is_contiguous() or (bias is not None and not bias.is_contiguous()):
            return "the weight or the bias is not dense"
        return ""

    def run(*args: Any) -> Tensor:
        return launch_conv(*args, wave=target.wave)

    def variant(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activated: bool) -> Hashable:
        numbers = (x.stride(0), x.stride(1), *state.stride())
        return x.dtype, state.shape[2], bias is not None, activated, specialised(numbers)

    def probe(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activated: bool) -> str:
        """On a state of its own."""
        channels, width, like = _CHANNELS + 7, state.shape[2], (x.dtype, x.device)
        with torch.inference_mode():
            new, taps = made_up((2, channels, 1), *like, 1), made_up((channels, width), *like, 2)
            added = None if bias is None else made_up((channels,), *like, 3)
            shape = (2, channels, width) if state.is_contiguous() else (2, width, channels)
            ours = made_up(shape, *like, 4)
            ours = ours if state.is_contiguous() else ours.mT
            theirs = ours.to(torch.float32, copy=True)
            got = run(new, ours, taps, added, activated)
            want = reference(new.float(), theirs, taps.float(), None if added is None else added.float(), activated)
            return disagreement(got, want) or disagreement(ours, theirs)

    return Candidate(run, check, variant, probe)


def launch_delta(
    query: Tensor, key: Tensor, value: Tensor, b: Tensor, a: Tensor, a_log: Tensor, dt_bias: Tensor, state: Tensor,
    early: bool, *, wave: int, via: Via = directly,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(output [B, 1, H, V], the new state, dense, fp32)."""
    batch, heads, size, columns = state.shape
    out = query.new_empty(value.shape)
    after = torch.empty(state.shape, dtype=torch.float32, device=state.device)
    rows, block = power_of_two(size), min(_COLUMNS, power_of_two(columns))
    strides = [number for one in (query, key, value, b, a) for number in (one.stride(0), one.stride(2))]
    via(kernels.delta_step)[(batch * heads, -(-columns // block))](
        query, key, value, b, a, a_log, dt_bias, state, out, after, heads, heads // key.shape[2], size**-0.5,
        *strides, *state.stride()[:3],
        K=size, V=columns, EARLY=early, BLOCK_K=rows, BLOCK_V=block, num_warps=min(waves(rows * block, wave), 8),
    )  # fmt: skip
    return out, after


def _delta_step(reference: Callable[..., Any], target: Target) -> Candidate:
    def check(
        query: Tensor, key: Tensor, value: Tensor, b: Tensor, a: Tensor, a_log: Tensor, dt_bias: Tensor, state: Tensor,
        early: bool,
    ) -> str:  # fmt: skip
        own = (query, key, value, b, a)
        tensors = (*own, a_log, dt_bias, state)
        if needs_grad(*tensors):
            return GRADIENT
        if [one.dim() for one in tensors] != [4, 4, 4, 3, 3, 1, 1, 4]:
            return "the heads have not four dimensions, or what is one number per head has not three or one"
        batch, length, heads, columns = value.shape
        if length != 1:
            return MANY
        shared, size = key.shape[2:]
        if query.shape != key.shape or key.shape[:2] != value.shape[:2] or not shared or heads % shared:
            return "the heads of queries, keys and values do not fit each other"
        if (
            b.shape != value.shape[:3]
            or a.shape != b.shape
            or a_log.shape != b.shape[2:]
            or dt_bias.shape != a_log.shape
        ):
            return "there is not one number per head"
        if state.shape != (batch, heads, size, columns) or size > _MOST:
            return f"the state is not [B, H, K, V], or K is above {_MOST}"
        if any(one.dtype is not query.dtype for one in own):
            return "the heads and their numbers are not of one dtype"
        if any(one.stride(-1) != 1 for one in (query, key, value, state)):
            return "a head or the state is not dense in its last dimension"
        if not a_log.is_contiguous() or not dt_bias.is_contiguous():
            return "the weights are not dense"
        return unfit(target, *tensors)

    def run(*args: Any) -> tuple[Tensor, Tensor]:
        return launch_delta(*args, wave=target.wave)

    def variant(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Hashable:
        b, a, a_log, dt_bias, state, early = rest
        numbers = tuple(n for one in (query, key, value, b, a) for n in (one.stride(0), one.stride(2)))
        kinds = query.dtype, a_log.dtype, dt_bias.dtype, state.dtype
        return *kinds, early, state.shape[2:], specialised((*numbers, *state.stride()[:3]))

    def probe(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> str:
        _, _, a_log, dt_bias, state, early = rest
        (size, columns), like = state.shape[2:], (query.dtype, query.device)
        shapes = ((2, 1, 2, size), (2, 1, 2, size), (2, 1, 4, columns), (2, 1, 4), (2, 1, 4))
        made = [made_up(shape, *like, seed) for seed, shape in enumerate(shapes, 5)]
        made += [made_up((4,), one.dtype, like[1], seed) for seed, one in enumerate((a_log, dt_bias), 10)]
        made.append(made_up((2, 4, size, columns), state.dtype, like[1], 12))
        return prove(run, reference, made, (early,))

    return Candidate(run, check, variant, probe)


def launch_gated_norm(
    x: Tensor, gate: Tensor, weight: Tensor, eps: float, target: Target, *, via: Via = directly
) -> Tensor:
    """x and gate [..., D], rows that lie one stride apart -> [..., D], dense."""
    size = x.shape[-1]
    rows = x.numel() // size
    cut = for_rows(size, rows < _CHANNELS, target)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    via(kernels.gated_rms_norm)[(-(-rows // cut.rows),)](
        x, gate, weight, y, rows, eps, _row(x), _row(gate),
        D=size, ROWS=cut.rows, BLOCK=cut.block, num_warps=cut.warps,
    )  # fmt: skip
    return y


def _row(x: Tensor) -> int:
    """How far rows lie apart."""
    return x.shape[-1] if x.is_contiguous() else x.stride(-2)


def _gated_norm(reference: Callable[..., Any], target: Target) -> Candidate:
    def check(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> str:
        if needs_grad(x, gate, weight):
            return GRADIENT
        if x.dim() < 1 or gate.shape != x.shape or weight.shape != x.shape[-1:]:
            return "the gate is not of x's shape, or the weight not of its rows"
        if gate.dtype is not x.dtype or weight.dtype is not x.dtype:
            return "x, the gate and the weight are not of one dtype"
        if any(not one.is_contiguous() and (one.dim() != 2 or one.stride(1) != 1) for one in (x, gate)):
            return "x or the gate is neither dense nor made of dense rows"
        if not weight.is_contiguous():
            return "the weight is not dense"
        return unfit(target, x, gate, weight) or ("" if x.shape[-1] <= 8192 else "rows are longer than 8192")

    def run(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        return launch_gated_norm(x, gate, weight, eps, target)

    def variant(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Hashable:
        return x.dtype, x.shape[-1], x.numel() // x.shape[-1] < _CHANNELS, specialised((_row(x), _row(gate)))

    def probe(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> str:
        size = x.shape[-1]
        shapes = ((5, size), (5, size), (size,))
        made = [made_up(shape, x.dtype, x.device, seed) for seed, shape in enumerate(shapes, 14)]
        return prove(run, reference, made, (eps,))

    return Candidate(run, check, variant, probe)


_MAKERS = {"conv_step": _conv_step, "delta_step": _delta_step, "gated_rms_norm": _gated_norm}


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of one of the three."""
    return _MAKERS[op](reference, target)
