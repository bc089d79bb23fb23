"""Launch the kernels themselves, with cuts small enough that rows of a few numbers need several programs and steps."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

import amd_ops
from amd_ops.backends.triton.configs import Config

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CUTS = (Config(1, 64, 1), Config(4, 16, 1), Config(2, 128, 2))
"""Block 16 makes rows of 40 a walk; 4 rows a program leave some over."""


def few(examples: int) -> settings:
    """Hypothesis settings for the slow interpreter; derandomised, so that a run costs and finds the same each time."""
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )  # fmt: skip


def laid_out(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """A tensor of ``shape``: dense, a transposed view, rows cut from a wider matrix, every other row, or one row
    repeated.
    """
    if layout == "transposed" and len(shape) > 1:
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).to(dtype).transpose(-1, -2)
    if layout == "sliced":
        return torch.randn(*shape[:-1], shape[-1] + 16).to(dtype)[..., 16:]
    if layout == "skipped" and len(shape) > 1:
        return torch.randn(*shape[:-2], 2 * shape[-2], shape[-1]).to(dtype)[..., ::2, :]
    if layout == "permuted" and len(shape) > 2:
        return torch.randn(shape[1], shape[0], *shape[2:]).to(dtype).transpose(0, 1)
    if layout == "repeated" and len(shape) > 1:
        return torch.randn(shape[-1]).to(dtype).expand(shape)
    return torch.randn(shape).to(dtype)


LAYOUTS = ("dense", "transposed", "sliced", "skipped", "permuted", "repeated")


def ran(op: str) -> int:
    """How often tier triton ran ``op``."""
    return amd_ops.report().calls(op, "triton")


def steps_apart(got: Tensor, want: Tensor) -> int:
    """The largest distance between two tensors of one 16-bit dtype, in representable numbers."""
    a, b = (t.contiguous().view(torch.int16).int() for t in (got, want))
    a, b = (torch.where(t < 0, -(t & 0x7FFF), t) for t in (a, b))
    return int((a - b).abs().max()) if a.numel() else 0
