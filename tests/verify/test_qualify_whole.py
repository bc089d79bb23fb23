"""Qualifications that take minutes: a profile's launches on the double of a GPU, and captures that hit their cap."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rocm_overlay.verify.qualify import command

from examples.tiny_models import save_tiny

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return importlib.import_module("bench_launches")


@pytest.mark.full
@pytest.mark.timeout(3600)  # every kernel is interpreted
@pytest.mark.parametrize("model", ["llama", "qwen3"])
def test_a_profile_launches_no_more_than_all_toggles(
    model: str, bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMD_OPS_PROFILES", str(tmp_path / "auto"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    options = command.Options(
        save_tiny(model, tmp_path / model), tmp_path / "profile.json", python=sys.executable, dtype="bfloat16"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVERLAY_TEST_GPU", "1")
        patch.setenv(
            "PYTHONPATH", os.pathsep.join((str(HERE / "doubles"), str(ROOT), os.environ.get("PYTHONPATH", "")))
        )
        said: list[str] = []
        content = command.qualify(options, said.append)
    assert content["complete"], said
    plain = bench.counted(model, "overlaid")
    profiled = bench.counted(model, "overlaid", options.output)
    for phase, counted in plain.items():
        assert profiled[phase]["kernels"] <= counted["kernels"], (phase, content["toggles"])
    assert profiled["decode"]["kernels"] == profiled["static decode"]["kernels"] == 9


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_place_whose_calls_are_not_kept_is_told_and_stays_at_stock(tmp_path: Path) -> None:
    model, output = save_tiny("llama", tmp_path / "llama"), tmp_path / "profile.json"
    run = [sys.executable, "-W", "ignore", "-m", "rocm_overlay", "qualify", "--model", str(model), "-o", str(output),
           "--max-capture", str(60_000 / 2**30)]  # fmt: skip
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stderr
    content = json.loads(output.read_text())
    assert content["left_out"]
    assert not content["complete"]
    for place, reason in content["left_out"].items():
        assert "the size cap is reached" in reason
        assert f"lost         {place}: " in done.stdout + done.stderr
        lost = [one for one in content["verdicts"]["candidates"] if place.split(".", 1)[1] in one["id"]]
        assert place in content["capture"]["places"] or all(one["status"] != "valid" for one in lost)
