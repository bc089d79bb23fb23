"""linear_cross_entropy on the kernels of kernels/cross_entropy.py: beside the products one launch for a block of the
vocabulary, forward and backward, which reads the product as it is and writes the gradient over it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..probing import misplaced, needs_grad, noise, prove
from ..vocabulary import Blocked, Form, Steps, cast
from .common import DTYPES
from .configs import waves
from .kernels import cross_entropy as kernels
from .layout import Via, directly, power_of_two
from .target import Target

_WALKED, _SHARED = 4096, 1024
"""Columns at a time: of a program that walks a row, and of one of those that share it."""
PROBED = 1100
"""Words of the head that a probe makes up: more than one program's columns."""


def _constants(form: Form) -> dict[str, bool]:
    names = ("DIVIDED", "SCALED", "CAPPED")
    return {name: number is not None for name, number in zip(names, form, strict=True)}


def _numbers(form: Form) -> list[float]:
    return [1.0 if number is None else float(number) for number in form]


def launch_add(
    logits: Tensor,
    labels: Tensor,
    first: int,
    total: Tensor,
    target: Tensor,
    form: Form,
    *,
    wave: int,
    via: Via = directly,
) -> None:
    """Add a block [T, N], dense rows, to ``total`` and ``target``, fp32 [T]."""
    count = logits.shape[1]
    block = min(power_of_two(count), _WALKED)
    via(kernels.add_block)[(logits.shape[0],)](
        logits, labels, total, target, count, logits.stride(0), first, *_numbers(form), **_constants(form),
        BLOCK=block, num_warps=waves(block, wave),
    )  # fmt: skip


def launch_gradient(
    logits: Tensor, labels: Tensor, first: int, total: Tensor, dy: Tensor, form: Form, *, wave: int, via: Via = directly
) -> Tensor:
    """The gradient of a block [T, N] in its own memory; total and dy are fp32 [T]."""
    rows, count = logits.shape
    block = min(power_of_two(count), _SHARED)
    blocks = -(-count // block)
    via(kernels.block_gradient)[(rows * blocks,)](
        logits, labels, total, dy, blocks, count, logits.stride(0), first, *_numbers(form), **_constants(form),
        BLOCK=block, num_warps=waves(block, wave),
    )  # fmt: skip
    return logits


def make(op: str, reference: Callable[..., Any], target: Target) -> Candidate:
    """Return the candidate of linear_cross_entropy."""

    def add(logits: Tensor, labels: Tensor, first: int, total: Tensor, chosen: Tensor, form: Form) -> None:
        launch_add(logits, labels, first, total, chosen, form, wave=target.wave)

    def gradient(logits: Tensor, labels: Tensor, first: int, total: Tensor, dy: Tensor, form: Form) -> Tensor:
        return launch_gradient(logits, labels, first, total, dy, form, wave=target.wave)

    blocked = Blocked.of(Steps(add, gradient), reference)

    def check(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, form: Form) -> str:
        given = [x, weight, labels] if bias is None else [x, weight, labels, bias]
        dtype = cast(x)
        if dtype is None and any(one.dtype is not x.dtype for one in given if one is not labels):
            return "the hidden states and the head are not of one dtype"
        if (dtype or x.dtype) not in DTYPES:
            return f"{dtype or x.dtype} is not fp32, fp16 or bf16"
        if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or labels.shape != x.shape[:1]:
            return "the hidden states, the head and the labels do not fit each other"
        if labels.dtype is not torch.int64 or (bias is not None and bias.shape != weight.shape[:1]):
            return "the labels are not int64, or the bias is not that of the head"
        return misplaced(target.type, *given)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, form: Form) -> Tensor:
        return blocked(x, weight, bias, labels.contiguous(), ignore_index, form)

    def variant(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore: int, form: Form) -> Hashable:
        wants = tuple(one is not None and needs_grad(one) for one in (x, weight, bias))
        return cast(x) or x.dtype, bias is None, wants, tuple(_constants(form).values())

    def probe(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore: int, form: Form) -> str:
        dtype, where, words = cast(x) or x.dtype, x.device, PROBED
        parts = [noise(shape, dtype, where, seed) for seed, shape in enumerate(((5, 16), (words, 16), (words,)), 50)]
        parts[1] *= 0.25
        like = [x, weight] if bias is None else [x, weight, bias]
        given = [part.requires_grad_(needs_grad(one)) for part, one in zip(parts, like, strict=False)]
        numbers = Form(*(None if one is None else known for one, known in zip(form, (2.0, 0.75, 4.0), strict=True)))
        chosen = torch.tensor([3, words - 1, -100, 0, words // 2], device=where)
        rest: tuple[Any, ...] = (chosen, -100, numbers) if bias is not None else (None, chosen, -100, numbers)
        with torch.autocast(target.type, enabled=False):
            return prove(run, reference, given, rest)

    return Candidate(run, check, variant, probe)
