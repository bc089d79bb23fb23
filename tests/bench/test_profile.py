"""`overlay profile`: what counts as covered, and a real trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rocm_overlay.bench import profiling
from rocm_overlay.bench.trace import summary

from examples.tiny_models import tiny_config


def event(name: str, us: float, parent: Any = None) -> Any:
    """A double of a profiler event."""
    return SimpleNamespace(name=name, self_cpu_time_total=us, self_device_time_total=2 * us, cpu_parent=parent)


def test_time_inside_an_op_of_ours_is_covered_however_deep() -> None:
    region = event("amd_ops::linear", 1.0)
    product = event("aten::mm", 5.0, event("aten::linear", 0.0, region))
    events = [region, product, event("aten::add", 3.0), event("aten::add", 1.0), event("aten::view", 0.0)]
    found = summary(events, on_gpu=False)
    assert found["total_us"] == 10.0
    assert found["coverage"] == pytest.approx(0.6)
    assert found["gaps"] == [{"op": "aten::add", "us": 4.0, "calls": 2}]
    assert summary(events, on_gpu=True)["total_us"] == 20.0


def test_nothing_measured_is_no_coverage() -> None:
    assert summary([], on_gpu=False)["coverage"] == 0.0


def test_one_sample_alone_has_no_range() -> None:
    assert profiling._times(1234.0, [1100.0, 1234.0, 9000.0]) == "1.23 [1.10, 9.00]"
    assert profiling._times(1234.0, [1234.0]) == "1.23"


def test_both_builds_are_traced(tmp_path: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "rocm_overlay", "profile", "--model", "model", "--isl", "8", "-o", "out", "--json"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    builds = json.loads(done.stdout)["builds"]
    for phase in (phase for build in builds.values() for phase in build["phases"].values()):
        assert sorted(phase["totals_us"])[2] == phase["total_us"], "the middle one of five is shown"
    assert builds["stock"]["phases"]["decode"]["coverage"] == 0.0
    assert builds["overlaid"]["phases"]["decode"]["coverage"] > 0.5
    trace = json.loads((tmp_path / "out" / builds["overlaid"]["phases"]["decode"]["trace"]).read_text())
    assert any(str(entry.get("name")).startswith("amd_ops::") for entry in trace["traceEvents"])
