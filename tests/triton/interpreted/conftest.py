"""Toggles as in tests/ops, and a tier triton that is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import amd_ops
from tests.ops.conftest import clean_toggles
from tests.unwritten import unwritten_is_nan

__all__ = ["clean_toggles"]


@pytest.fixture
def asked(clean_toggles: None) -> Iterator[None]:
    """USE_OPTIMIZED_OPS=1, strictly: a call that tier triton declines is an error."""
    with amd_ops.override(use_optimized_ops=1, strict=1), torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def nothing_written() -> Iterator[None]:
    """Outputs begin as NaN."""
    with unwritten_is_nan():
        yield
