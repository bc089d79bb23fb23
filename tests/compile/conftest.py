"""Graphs of one test never serve another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import amd_ops


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    amd_ops.refresh()
    amd_ops.reset_counters()
    yield
    torch._dynamo.reset()
    amd_ops.refresh()
    amd_ops.reset_counters()
