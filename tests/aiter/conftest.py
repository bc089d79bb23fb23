"""Fixtures of the contract tests: a fake GPU per aiter version, amd_ops attached and asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import amd_ops
from tests.aiter.support import GPUS, ON, PRIMARY, TARGETS, Gpu
from tests.doubles.aiter import fake_aiter


def _start(version: str, arch: str) -> Iterator[Gpu]:
    torch.manual_seed(0)
    with fake_aiter(version, arch, GPUS[arch]) as double, amd_ops.override(**ON, strict=1), torch.no_grad():
        amd_ops.reset_counters()
        yield Gpu(double)


@pytest.fixture(params=TARGETS, ids="-".join)
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    """Every modelled version on gfx942, the two newest lines also on gfx950."""
    yield from _start(*request.param)


@pytest.fixture(params=PRIMARY, ids="-".join)
def primary(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    """The two versions of the contract on both arches."""
    yield from _start(*request.param)


@pytest.fixture
def one() -> Iterator[Gpu]:
    """A single GPU, for what does not depend on version or arch."""
    yield from _start("v0.1.9.post1", "gfx942")
