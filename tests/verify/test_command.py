"""`overlay verify` from end to end, on a tiny saved model and this interpreter."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay import console
from rocm_overlay.console import Steps, failure, set_json
from rocm_overlay.errors import OverlayError
from rocm_overlay.verify import command, plan, report, target
from rocm_overlay.verify.workers import Results, Setup, run_all

from examples.tiny_models import save_tiny

CASES = ("prefill", "padded", "greedy")
STOCK_SOURCES = target.find_sources


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(autouse=True)
def fewer_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under test here is the machinery; tests/parity runs every case."""
    monkeypatch.setattr(plan, "CASES", CASES)
    monkeypatch.setattr(plan, "IMPLEMENTATIONS", ("sdpa",))


def verify(model: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[int, dict[str, Any], str]:
    """Run the command with ``--json``; return exit code, report and what went to standard error."""
    try:
        set_json(True)
        code = command.run(command.Options(str(model), python=sys.executable, **options))
    except OverlayError as error:
        code = failure("verify", error, as_json=True)
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["schema"] == "amd-overlay.verify/1"
    assert found["exit_code"] == code
    return code, found, err


def mutate(monkeypatch: pytest.MonkeyPatch, old: bytes, new: bytes) -> None:
    """Let verify find an overlay text with a fault in it."""

    def find(*arguments: Any) -> list[target.Source]:
        sources = STOCK_SOURCES(*arguments)
        assert all(source.overlay.count(old) == 1 for source in sources)
        return [replace(source, overlay=source.overlay.replace(old, new)) for source in sources]

    monkeypatch.setattr(target, "find_sources", find)


@pytest.fixture(scope="module")
def complete(model: Path) -> tuple[Setup, Results]:
    """One verification with every tier and toggle; the caller's environment is full of toggles that must not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "CASES", CASES)
        patch.setattr(plan, "IMPLEMENTATIONS", ("sdpa",))
        patch.setenv("USE_AITER_GEMM", "nonsense")
        patch.setenv("AMD_OPS_TIERS", "eager")
        setup, runs = command.prepare(command.Options(str(model), sys.executable, max_new_tokens=6), "float32")
        steps: list[str] = []
        files = setup.interpreter.package / "models" / "llama"
        before = {path: path.stat().st_mtime_ns for path in files.rglob("*")}
        totals: list[int] = []

        def tell(text: str, done: int, total: int) -> None:
            steps.append(text)
            totals.append(total)

        other = replace(setup, cases=(*setup.cases, "padded-encoder"))  # no case of a causal model
        shown = Steps(tell=tell)
        results = run_all(other, runs, shown)
        assert {path: path.stat().st_mtime_ns for path in files.rglob("*")} == before, "the target was written to"
    assert len(steps) == len(CASES) + sum(len(run.cases) for run in results.runs)
    assert shown.done == shown.total == len(steps)
    assert totals[0] == len(CASES) * (1 + len(runs)), "more is expected of a tier than what turns out to run"
    return setup, results


def test_every_tier_and_toggle_is_within_tolerance(complete: tuple[Setup, Results]) -> None:
    setup, results = complete
    runs = {result.run.id: result for result in results.runs}
    assert len(runs) == 21
    assert runs["off"].status == "ok"
    assert all(case["bitwise"] for case in runs["off"].cases)
    for tier in ("torch", "eager"):
        for label in (*plan.SINGLE, "all"):
            result = runs[f"{label}/{tier}"]
            assert result.status == "ok", result
            assert [case["case"] for case in result.cases] == list(CASES)
            assert any(tier in tiers for tiers in result.ran.values()) or label == "USE_FUSED_PROJECTIONS", result.ran
    assert setup.sources[0].installed == "stock"


def test_a_tier_that_cannot_run_here_is_shown_with_the_reason(complete: tuple[Setup, Results]) -> None:
    """No HIP device in the test suite: aiter must be declined, for a reason, and not be taken for a success."""
    declined = {result.run.id: result for result in complete[1].runs}["all/aiter"]
    assert declined.status == "declined"
    assert any(item["op"] == "attention" and item["reason"] for item in declined.declined)
    assert not any("aiter" in tiers for tiers in declined.ran.values())


def test_the_json_report_is_complete(complete: tuple[Setup, Results]) -> None:
    found = report.as_json(*complete, 1.5)
    assert found["schema"] == "amd-overlay.verify/1"
    assert found["exit_code"] == 0
    assert found["ok"] is True
    assert len(found["runs"]) == 21
    assert {row["kind"] for row in found["tolerances"]} == {"*", "value", "grad"}
    assert found["interpreter"]["torch"]
    assert found["sources"][0]["path"] == "models/llama/modeling_llama.py"
    worst = found["runs"][1]["cases"][0]["worst"]
    assert worst.keys() >= {"max_abs", "max_rel", "cosine", "bitwise", "first_token"}


def test_several_dtypes_are_one_report(complete: tuple[Setup, Results]) -> None:
    first = report.as_json(*complete, 1.5)
    kept = {"parts": 3, "of": 21, "newest": "2026-11-30T09:12:00+00:00"}
    second = {**first, "dtype": "bfloat16", "ok": False, "exit_code": 1, "reused": kept}
    found = report.joined([first, second])
    assert report.joined([first]) is first
    assert (found["dtype"], found["ok"], found["exit_code"], found["seconds"]) == ("float32,bfloat16", False, 1, 3.0)
    assert [run["dtype"] for run in found["runs"]] == ["float32"] * 21 + ["bfloat16"] * 21
    assert found["reused"] == kept
    assert found.keys() == first.keys()


def test_details_name_what_ran_and_what_did_not(
    complete: tuple[Setup, Results], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(console, "_level", console.VERBOSE)
    report.show(*complete, 1.5)
    out = capsys.readouterr().out
    for text in ("models/llama/modeling_llama.py", "stock expressions", "declined", "3 of 3", "attention", "equal"):
        assert text in out
    assert out.startswith("11 ok, 10 declined; 3 cases each, 1.5 s\n")
    assert "no HIP device" in out


@pytest.mark.parametrize("columns", [60, 80])
def test_a_narrow_terminal_gets_a_line_per_run(
    complete: tuple[Setup, Results], columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    report.show(*complete, 1.5)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    assert "no HIP device" in " ".join(out.split()), "why a tier did not run is no detail"
    if columns == 80:
        assert sum(" ok " in line for line in out.splitlines()) == 11, "a line per run"


def test_a_fault_in_the_overlay_is_found_and_named(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sign of the scale is wrong: every case deviates, and the first differing token is told."""
    mutate(monkeypatch, b"self.scaling = self.head_dim**-0.5", b"self.scaling = -self.head_dim**-0.5")
    assert command.run(command.Options(str(model), python=sys.executable, tiers="torch", toggles=["off"])) == 1
    out = capsys.readouterr().out
    assert "deviates: off: sdpa prefill: logits: max rel" in out
    assert "deviates: off: sdpa padded: logits_left: max rel" in out
    assert "deviates: off: sdpa greedy: tokens: first differing token in row" in out


def test_off_must_be_equal_to_the_last_bit(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch, b"self.scaling = self.head_dim**-0.5", b"self.scaling = self.head_dim**-0.5 * 1.000001")
    code, found, _ = verify(model, capsys, tiers="torch", toggles=["off"])
    assert code == 1
    (off,) = found["runs"]
    assert off["status"] == "deviates"
    assert all(case["worst"]["max_rel"] < 1e-5 for case in off["cases"]), "a tolerance would have let this pass"


def test_a_process_that_dies_and_a_case_that_raises(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tier torch kills its process, tier eager raises: both are results, and off, which came before, keeps its own."""
    guard = b"        if _amd and _amd.on.rms_norm:\n"
    fault = (
        b"            if 'torch' in _amd.settings().tiers:\n"
        b"                __import__('os')._exit(41)\n"
        b"            raise ArithmeticError('planted')\n"
    )
    mutate(monkeypatch, guard, guard + fault)
    code, found, _ = verify(model, capsys, tiers="torch,eager", toggles=["USE_OPTIMIZED_OPS"])
    assert code == 1
    assert [run["status"] for run in found["runs"]] == ["ok", "crashed", "deviates"]
    assert "status 41" in found["runs"][1]["message"]
    assert [case["error"] for case in found["runs"][2]["cases"]] == ["ArithmeticError: planted"] * 3


@pytest.mark.parametrize(
    ("options", "code", "id"),
    [
        ({"tiers": "cuda"}, 2, "bad-tiers"),
        ({"toggles": ["FAST"]}, 2, "bad-toggles"),
        ({"dtype": "int8"}, 2, "bad-dtype"),
        ({"max_new_tokens": 0}, 2, "bad-length"),
        ({"toggles": ["USE_AITER_GEMM=maybe"], "tiers": "torch"}, 2, "bad-toggles"),
    ],
)
def test_mistakes_of_the_user(
    options: dict[str, Any], code: int, id: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code, found, err = verify(model, capsys, **options)
    assert exit_code == code
    assert found["error"]["id"] == id
    assert found["error"]["remedy"]
    assert found["error"]["message"] in err


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = verify(tmp_path, capsys)
    assert code == 2
    assert found["error"]["paths"] == [str(tmp_path)]


def test_a_model_whose_weights_are_missing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    code, found, _ = verify(tmp_path, capsys)
    assert code == 2
    assert found["error"]["id"] == "model-unreadable"
    assert "cannot load" in found["error"]["message"]
