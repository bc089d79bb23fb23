"""Every test starts with the toggles unset, counters at zero and no warning given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import amd_ops

TOGGLES = (
    "USE_AITER_ATTENTION",
    "USE_AITER_GEMM",
    "USE_OPTIMIZED_OPS",
    "USE_FUSED_PROJECTIONS",
    "USE_PRESHUFFLE",
    "PRESHUFFLE_M_THRESH",
    "USE_FUSED_CROSS_ENTROPY",
    "FORCE_EAGER_ATTENTION",
    "AMD_OPS_TIERS",
    "AMD_OPS_TRITON_PROVIDERS",
    "AMD_OPS_STRICT",
    "AMD_OPS",
)


@pytest.fixture(autouse=True)
def clean_toggles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in TOGGLES:
        monkeypatch.delenv(name, raising=False)
    amd_ops.refresh()
    amd_ops.reset_counters()
    torch.manual_seed(0)
    yield
    monkeypatch.undo()
    amd_ops.refresh()
    amd_ops.reset_counters()
