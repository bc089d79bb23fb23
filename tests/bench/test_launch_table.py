"""The published launch table has bounds: what a decoder layer launches in one decode step, as the bound tiers do it."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BOUNDS = {"llama": 9, "qwen3_moe": 10, "gemma3": 11, "gpt_oss": 14, "deepseek_v3": 21}


@pytest.fixture(scope="module")
def counted() -> Callable[[str, str], dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])  # the benchmark imports its neighbour
        found: Callable[[str, str], dict[str, Any]] = runpy.run_path(str(BENCHMARKS / "bench_launches.py"))["counted"]
    return found


@pytest.mark.parametrize("model", BOUNDS)
def test_a_decode_step_launches_no_more_than_the_table_says(
    model: str, counted: Callable[[str, str], dict[str, Any]]
) -> None:
    phases = counted(model, "overlaid")
    for phase in {"decode", "static decode"} & set(phases):
        assert phases[phase]["kernels"] <= BOUNDS[model], phases[phase]["names"]
