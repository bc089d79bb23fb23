"""`overlay verify --executor ray | --workers N | --work DIR`: the same report from jobs that ran anywhere."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.executor import make_executor
from rocm_overlay.journal import Journal
from rocm_overlay.verify import command, spread
from rocm_overlay.verify.plan import Run
from rocm_overlay.verify.target import Interpreter
from rocm_overlay.verify.workers import Results, RunResult, Setup

from examples.tiny_models import save_tiny

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the [ray] extra is not installed")
ON = {"USE_AITER_GEMM": "1"}
RUNS = [Run("off", "off", {}), Run("all", "torch", ON), Run("all", "eager", ON), Run("all", "triton", ON)]


def setup(dtype: str = "float32") -> Setup:
    """A verification of a model that does not exist."""
    interpreter = Interpreter("/usr/bin/python3", "3.11.7", "2.13.0", "4.57.6", Path("/nowhere"), None)
    return Setup(interpreter, Path("/models/tiny"), [], dtype, 0, 8, ("prefill",), ("sdpa",))


class Verified:
    """A double of `run_all`: made-up results, and a record of which tiers were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.dead: set[str] = set()

    def __call__(self, setup: Setup, runs: list[Run], step: Any) -> Results:
        self.asked.append(runs[-1].tier)
        status = "crashed" if runs[-1].tier in self.dead else "ok"
        cases = [{"case": "prefill", "ok": True}]
        return Results("a GPU", {"model": "x"}, [RunResult(run, status, cases) for run in runs], [], 1)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> Verified:
    double = Verified()
    monkeypatch.setattr(spread, "run_all", double)
    return double


def run(journal: Journal | None, dtype: str = "float32") -> Results:
    pool = make_executor("process", 2)
    try:
        return spread.run_spread(setup(dtype), RUNS, lambda text: None, pool, journal)
    finally:
        pool.close()


def test_every_tier_is_a_job_and_the_report_keeps_the_order(verified: Verified) -> None:
    results = run(None)
    assert [result.run for result in results.runs] == RUNS
    assert sorted(verified.asked) == ["eager", "torch", "triton"]
    assert (results.device, results.compared, results.loaded) == ("a GPU", 1, {"model": "x"})


def test_a_second_run_asks_only_for_what_is_missing(verified: Verified, tmp_path: Path) -> None:
    path = tmp_path / "work" / "verify.jsonl"
    verified.dead = {"eager"}
    first = run(spread.open_journal(path))
    assert [result.status for result in first.runs] == ["ok", "ok", "crashed", "ok"]
    with path.open("a") as stream:
        stream.write('{"job": "torn')  # a kill in the middle of a line
    verified.asked, verified.dead = [], set()
    second = run(spread.open_journal(path))
    assert verified.asked == ["eager"]
    assert {result.status for result in second.runs} == {"ok"}
    verified.asked = []
    assert run(spread.open_journal(path)).runs == second.runs
    assert verified.asked == []
    run(spread.open_journal(path), dtype="bfloat16")
    assert len(verified.asked) == 3, "another plan is another job"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"executor": "slurm"}, "--executor is 'slurm'"),
        ({"workers": 0}, "--workers is 0"),
        ({"workers": 2, "save": Path("s.safetensors")}, "--save and --compare"),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny("llama", tmp_path / "llama")
    assert command.run(model, python=sys.executable, json_output=True, **options) == 2
    assert said in capsys.readouterr().err


@needs_ray
@pytest.mark.full
def test_a_ray_cluster_gives_what_this_machine_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what Ray gives a worker of one CPU; other sums are rounded elsewhere
    model = save_tiny("llama", tmp_path / "llama")
    few = {"tiers": "torch,eager", "toggles": ["all"], "cases": "quick", "json_output": True}
    assert command.run(model, python=sys.executable, **few) == 0
    here = json.loads(capsys.readouterr().out)
    assert command.run(model, python=sys.executable, executor="ray", workers=2, work=tmp_path / "work", **few) == 0
    there = json.loads(capsys.readouterr().out)
    for report in (here, there):
        report.pop("seconds")
        for one in report["runs"]:
            one.pop("seconds")
    assert [one["id"] for one in there["runs"]] == ["off", "all/torch", "all/eager"]
    assert there == here
