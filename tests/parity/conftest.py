"""Every parity test starts with the toggles off, whatever the environment or an earlier test said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import amd_ops

TOGGLES = (
    "USE_AITER_ATTENTION", "USE_AITER_GEMM", "USE_OPTIMIZED_OPS", "USE_FUSED_PROJECTIONS", "USE_PRESHUFFLE",
    "PRESHUFFLE_M_THRESH", "FORCE_EAGER_ATTENTION", "AMD_OPS_TIERS", "AMD_OPS", "AMD_OPS_STRICT",
)  # fmt: skip


@pytest.fixture(autouse=True)
def toggles_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clear the environment and bind everything to stock."""
    for name in TOGGLES:
        monkeypatch.delenv(name, raising=False)
    amd_ops.refresh()
    yield
    amd_ops.refresh()
