"""Gated activations: one kernel, fp32 inside, one rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...dispatch import Candidate
from ..probing import apart, disagreement, made_up, unusable
from .library import HALF, expect, function_of

NAMES = ("silu_and_mul", "gelu_and_mul", "gelu_tanh_and_mul")


def make(name: str, reference: Callable[..., Any], kind: str) -> Candidate:
    """``name(out, input)`` writes activated-first-half * second-half; it reads no strides and checks no shapes."""
    function, names = function_of(name)
    expect(name, names, ("out", "input"))

    def check(x: Tensor) -> str:
        if x.dtype not in HALF:
            return f"{x.dtype} is neither fp16 nor bf16"
        if x.shape[-1] % 2:
            return "the last dimension is odd"
        return unusable(kind, x) or ("" if x.is_contiguous() else "the input is not contiguous")

    def run(x: Tensor) -> Tensor:
        out = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
        function(out, x)
        return out

    def compare(x: Tensor) -> str:
        sample = made_up((3, x.shape[-1]), x.dtype, x.device, 1)
        return disagreement(run(sample), reference(sample.float()))

    def bind(x: Tensor) -> Callable[..., Tensor] | None:
        if x.dim() != 2:
            return None
        shape = (x.shape[0], x.shape[1] // 2)

        def fast(x: Tensor) -> Tensor:
            out = x.new_empty(shape)
            function(out, x)
            return out

        return fast

    return Candidate(run, check, lambda x: x.dtype, apart(compare), bind=bind)
