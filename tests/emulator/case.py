"""A launch of our Triton kernels on made-up data beside stock's answer: what every list of cases is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amd_ops.backends.triton.configs import Config
from amd_ops.backends.triton.target import Target, wave_of
from tests.unwritten import unwritten_is_nan

CHIPS = {"gfx90a": 110, "gfx942": 304, "gfx950": 256, "gfx1100": 96, "gfx1201": 64}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Answer:
    """One result and stock's. ``size``: what the rounding errors are relative to where terms cancel (default: stock's
    own value). ``exact``: every bit must be stock's.
    """

    name: str
    got: Tensor
    want: Tensor
    size: Tensor | None = None
    exact: bool = False


@dataclass(frozen=True)
class Case:
    """One or more launches with any cut. ``run(via, cut)`` makes fresh data from a fixed seed."""

    name: str
    dtype: torch.dtype
    cuts: Callable[[Target], list[Config]]
    run: Callable[[Any, Config], list[Answer]]
    launches: int = 1

    @property
    def id(self) -> str:
        """Name and dtype."""
        return f"{self.name}-{NAMES[self.dtype]}"

    def answers(self, via: Any, cut: Config) -> list[Answer]:
        """``run``, with NaN wherever a kernel should have written and did not."""
        with unwritten_is_nan():
            return self.run(via, cut)


def target_of(arch: str) -> Target:
    """The chip as the host describes it."""
    return Target("cuda", arch, wave_of(arch), CHIPS[arch])


def data(*shape: int, dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def by_the_launcher(target: Target) -> list[Config]:
    """The launcher takes no cut: sizes and the width of a wave decide, and nothing is tuned."""
    return [Config(1, 1, 1)]
