"""join_rope on the kernel of kernels/latent.py, one launch. Inference only."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..probing import made_up, needs_grad, prove
from .common import unfit
from .configs import waves
from .experts import GRADIENT
from .kernels import latent as kernels
from .layout import MAX_OFFSET, Via, directly, power_of_two, specialised
from .target import Target

_ELEMENTS = 2048


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of batch, token and head."""
    return x.stride(0), x.stride(2), x.stride(1)


def launch_latent(
    q_pass: Tensor,
    q_rot: Tensor,
    k_pass: Tensor | None,
    k_rot: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    *,
    wave: int,
    via: Via = directly,
) -> tuple[Tensor, Tensor]:
    """q and k, dense [B, H, S, P + R]; without a k_pass k is the rotated part, [B, 1, S, R]."""
    batch, heads, length, rest = q_pass.shape
    width = q_rot.shape[3]
    alone = k_pass is None
    still = k_rot if k_pass is None else k_pass  # not read where it stands in
    k_heads = 1 if alone else heads
    q = q_pass.new_empty((batch, heads, length, rest + width))
    k = q_pass.new_empty((batch, k_heads, length, width if alone else rest + width))
    columns = power_of_two(max(rest, width))
    rows = min(power_of_two(heads), max(_ELEMENTS // columns, 1))
    tables = [number for t in (cos, sin) for number in (t.stride(0) if t.shape[0] > 1 else 0, t.stride(1))]
    via(kernels.latent_rope)[(batch * length, -(-heads // rows) - (-k_heads // rows))](
        q_pass, q_rot, still, k_rot, cos, sin, q, k, length, heads, k_heads,
        *_strides(q_pass), *_strides(q_rot), *_strides(still), *_strides(k_rot)[:2], *tables,
        P=rest, PK=0 if alone else rest, HALF=width // 2, PAIRS=interleaved,
        BLOCK_H=rows, BLOCK=power_of_two(width // 2), BLOCK_P=power_of_two(rest), num_warps=waves(rows * columns, wave),
    )  # fmt: skip
    return q, k


def _alone(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` without a k_pass."""
    return lambda q_pass, q_rot, *rest: call(q_pass, q_rot, None, *rest)


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of join_rope."""

    def check(
        q_pass: Tensor,
        q_rot: Tensor,
        k_pass: Tensor | None,
        k_rot: Tensor,
        cos: Tensor,
        sin: Tensor,
        interleaved: bool,
    ) -> str:
        still = q_pass if k_pass is None else k_pass
        tensors = (q_pass, q_rot, still, k_rot, cos, sin)
        if needs_grad(*tensors):
            return GRADIENT
        if any(one.dtype is not q_pass.dtype for one in tensors):
            return "the parts of the heads and the tables are not of one dtype"
        if [one.dim() for one in tensors] != [4, 4, 4, 4, 3, 3] or any(one.stride(-1) != 1 for one in tensors):
            return "the parts have not four dimensions, the tables not three, or the last one is not dense"
        batch, heads, length, rest = q_pass.shape
        width = q_rot.shape[3]
        if still.shape != q_pass.shape or q_rot.shape[:3] != q_pass.shape[:3] or width % 2:
            return "the parts of the heads do not fit each other"
        if k_rot.shape != (batch, 1, length, width) or cos.shape != sin.shape or cos.shape[1:] != (length, width):
            return "the key's part or the tables do not fit the queries' part"
        if cos.shape[0] not in (1, batch) or batch * heads * length * (rest + width) > MAX_OFFSET:
            return "the tables are of another batch, or the results too large for 32-bit indexing"
        return unfit(target, *tensors)

    def run(*args: Any) -> tuple[Tensor, Tensor]:
        return launch_latent(*args, wave=target.wave)

    def variant(q_pass: Tensor, q_rot: Tensor, k_pass: Tensor | None, k_rot: Tensor, *rest: Any) -> Hashable:
        given = (q_pass, q_rot, k_rot) if k_pass is None else (q_pass, q_rot, k_rot, k_pass)
        numbers = tuple(number for one in given for number in _strides(one))
        return q_pass.dtype, q_pass.shape[3], q_rot.shape[3], rest[-1], specialised(numbers)

    def probe(q_pass: Tensor, q_rot: Tensor, k_pass: Tensor | None, *rest: Any) -> str:
        size, width, where, dtype = q_pass.shape[3], q_rot.shape[3], q_pass.device, q_pass.dtype
        shapes = ((2, 3, 2, size), (2, 3, 2, width), (2, 3, 2, size), (2, 1, 2, width), (1, 2, width), (1, 2, width))
        with torch.inference_mode():
            parts = [made_up(shape, dtype, where, seed) for seed, shape in enumerate(shapes, 26)]
            if k_pass is not None:
                return prove(run, reference, parts, (rest[-1],))
            del parts[2]
            return prove(_alone(run), _alone(reference), parts, (rest[-1],))

    return Candidate(run, check, variant, probe)
