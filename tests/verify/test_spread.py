"""`overlay verify --executor ray | --workers N | --work DIR`: the same report from jobs that ran anywhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay import console
from rocm_overlay.errors import UsageError
from rocm_overlay.executor import make_executor
from rocm_overlay.fingerprint import Fingerprint
from rocm_overlay.verify import command, spread
from rocm_overlay.verify.plan import Run
from rocm_overlay.verify.target import Interpreter
from rocm_overlay.verify.workers import Results, RunResult, Setup

from examples.tiny_models import save_tiny

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the [ray] extra is not installed")
ON = {"USE_AITER_GEMM": "1"}
RUNS = [Run("off", "off", {}), Run("all", "torch", ON), Run("all", "eager", ON), Run("all", "triton", ON)]


def setup(dtype: str = "float32", subject: str = "a model") -> Setup:
    """A verification of a model that does not exist."""
    interpreter = Interpreter("/usr/bin/python3", "3.11.7", "2.13.0", "4.57.6", Path("/nowhere"), None)
    known = Fingerprint({"model": subject})
    return Setup(interpreter, Path("/models/tiny"), [], dtype, 0, 8, ("prefill",), ("sdpa",), subject=known)


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


def run(path: Path | None, *, fresh: bool = False, **subject: str) -> Results:
    pool = make_executor("process", 2)
    kept = spread.Kept(spread.open_journal(path), fresh) if path else None
    try:
        return spread.run_spread(setup(**subject), RUNS, lambda text: None, pool, kept)
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
    first = run(path)
    assert [result.status for result in first.runs] == ["ok", "ok", "crashed", "ok"]
    with path.open("a") as stream:
        stream.write('{"job": "torn')  # a kill in the middle of a line
    verified.asked, verified.dead = [], set()
    second = run(path)
    assert verified.asked == ["eager"]
    assert {result.status for result in second.runs} == {"ok"}
    assert second.reused is not None
    assert second.reused.text("tiers").startswith("2 of 3 tiers are from an earlier run of 20")
    verified.asked = []
    assert run(path).runs == second.runs
    assert verified.asked == []
    for changed in ({"dtype": "bfloat16"}, {"subject": "another model"}, {"fresh": True}):
        verified.asked = []
        assert run(path, **changed).reused is None
        assert len(verified.asked) == 3, changed


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
    with pytest.raises(UsageError, match=said):
        command.run(command.Options(str(model), python=sys.executable, **options))


def test_another_model_under_the_same_path_is_verified_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real processes: the weights that the second report tells of are those of the model that is there now."""
    model = save_tiny("llama", tmp_path / "llama")
    few: dict[str, Any] = {"tiers": "torch", "toggles": ["all"], "cases": "prefill"}
    console.set_json(True)

    def run(**options: Any) -> dict[str, Any]:
        asked = command.Options(str(model), python=sys.executable, work=tmp_path / "work", **few, **options)
        assert command.run(asked) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    first, again = run(), run()
    assert first["reused"] is None
    assert (again["reused"]["parts"], again["reused"]["of"], again["runs"]) == (1, 1, first["runs"])
    shutil.rmtree(model)
    save_tiny("llama", model, rope_theta=1000.0, hidden_size=128)
    asked: list[Setup] = []
    real = spread.run_all
    monkeypatch.setattr(spread, "run_all", lambda setup, *rest: (asked.append(setup), real(setup, *rest))[1])
    other = run()
    assert (other["reused"], len(asked)) == (None, 1)
    worst = [[case["worst"]["max_abs"] for case in one["runs"][1]["cases"]] for one in (first, other)]
    assert worst[0] != worst[1], "measured on this model"
    monkeypatch.setattr(spread, "run_all", Verified())
    assert run()["reused"]["parts"] == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run()["reused"] is None
    monkeypatch.undo()
    monkeypatch.setattr(spread, "run_all", Verified())
    assert run(fresh=True)["reused"] is None


@needs_ray
@pytest.mark.full
def test_a_ray_cluster_gives_what_this_machine_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what Ray gives a worker of one CPU; other sums are rounded elsewhere
    model = save_tiny("llama", tmp_path / "llama")
    few = {"tiers": "torch,eager", "toggles": ["all"], "cases": "quick"}
    assert command.run(command.Options(str(model), python=sys.executable, **few)) == 0
    here = json.loads(capsys.readouterr().out)
    asked = command.Options(str(model), python=sys.executable, **few)
    assert command.run(replace(asked, executor="ray", workers=2, work=tmp_path / "work")) == 0
    there = json.loads(capsys.readouterr().out)
    for report in (here, there):
        report.pop("seconds")
        for one in report["runs"]:
            one.pop("seconds")
    assert [one["id"] for one in there["runs"]] == ["off", "all/torch", "all/eager"]
    assert there == here
