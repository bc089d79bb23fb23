"""Every test starts with the toggles off and no counter, and leaves nothing packed, frozen or patched behind."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

import amd_ops
from amd_ops.backends import shuffled


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("USE_AITER_ATTENTION", "USE_AITER_GEMM", "USE_OPTIMIZED_OPS", "USE_FUSED_PROJECTIONS", "AMD_OPS"):
        monkeypatch.delenv(name, raising=False)
    amd_ops.refresh()
    amd_ops.reset_counters()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
        yield
    shuffled.drop_all()
    amd_ops.refresh()
    amd_ops.reset_counters()
