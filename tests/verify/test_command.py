"""`overlay verify` from end to end, on a tiny saved model and this interpreter."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.verify import command, plan, target

from examples.tiny_models import save_tiny

STOCK_SOURCES = target.find_sources


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(autouse=True)
def fewer_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under test here is the machinery; tests/parity runs every case."""
    monkeypatch.setattr(plan, "CASES", ("prefill", "padded", "greedy"))
    monkeypatch.setattr(plan, "IMPLEMENTATIONS", ("sdpa",))


def verify(model: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[int, dict[str, Any], str]:
    """Run the command with ``--json``; return exit code, report and what went to standard error."""
    code = command.run(model, python=sys.executable, json_output=True, **options)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1, "standard output holds one JSON object and nothing else"
    report = json.loads(out)
    assert report["schema"] == "amd-overlay.verify/1"
    assert report["exit_code"] == code
    return code, report, err


def mutate(monkeypatch: pytest.MonkeyPatch, old: bytes, new: bytes) -> None:
    """Let verify find an overlay text with a fault in it."""

    def find(*arguments: Any) -> list[target.Source]:
        sources = STOCK_SOURCES(*arguments)
        assert all(source.overlay.count(old) == 1 for source in sources)
        return [replace(source, overlay=source.overlay.replace(old, new)) for source in sources]

    monkeypatch.setattr(target, "find_sources", find)


def test_every_tier_and_toggle_is_within_tolerance(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report, _ = verify(model, capsys)
    assert code == 0, [run for run in report["runs"] if run["status"] not in ("ok", "declined")]
    runs = {run["id"]: run for run in report["runs"]}
    assert len(runs) == 21
    assert runs["off"]["status"] == "ok"
    assert all(case["bitwise"] for case in runs["off"]["cases"])
    for tier in ("torch", "eager"):
        for label in (*plan.SINGLE, "all"):
            run = runs[f"{label}/{tier}"]
            assert run["status"] == "ok", run
            assert [case["case"] for case in run["cases"]] == ["prefill", "padded", "greedy"]
            assert run["ran"], "no op ran: nothing was verified"
    declined = runs["all/aiter"]
    assert declined["status"] == "declined"
    assert any(item["op"] == "attention" and item["reason"] for item in declined["declined"])
    assert {row["kind"] for row in report["tolerances"]} == {"*", "value", "grad"}
    assert report["sources"][0]["installed"] == "stock"


def test_the_table_names_what_ran_and_what_did_not(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = command.run(model, python=sys.executable, tiers="torch,aiter", toggles=["all"])
    out = capsys.readouterr().out
    assert code == 0
    for text in (
        "models/llama/modeling_llama.py",
        "stock expressions",
        "declined",
        "3 of 3",
        "2 of 3 runs within tolerance",
    ):
        assert text in out


def test_a_fault_in_the_overlay_is_found_and_named(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off must be bit-equal: a scale that is off by one part in a million fails it."""
    mutate(monkeypatch, b"self.scaling = self.head_dim**-0.5", b"self.scaling = self.head_dim**-0.5 * 1.000001")
    code, report, _ = verify(model, capsys, tiers="torch", toggles=["off"])
    assert code == 1
    (off,) = report["runs"]
    assert off["status"] == "deviates"
    assert {case["case"] for case in off["cases"] if not case["ok"]} == {"prefill", "padded", "greedy"}
    code = command.run(model, python=sys.executable, tiers="torch", toggles=["off"])
    assert code == 1
    assert "deviates: off: sdpa prefill: logits: max rel" in capsys.readouterr().out


def test_the_first_differing_token_is_named(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch, b"self.scaling = self.head_dim**-0.5", b"self.scaling = -self.head_dim**-0.5")
    assert command.run(model, python=sys.executable, tiers="torch", toggles=["off"]) == 1
    assert "deviates: off: sdpa greedy: tokens: first differing token in row" in capsys.readouterr().out


def test_a_process_that_dies_is_reported_and_the_others_go_on(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Toggles on kill the process; the off run, which came before in the same one, keeps its result."""
    mutate(
        monkeypatch,
        b"        if _amd and _amd.on.rms_norm:\n",
        b"        if _amd and _amd.on.rms_norm:\n            __import__('os')._exit(41)\n",
    )
    code, report, _ = verify(model, capsys, tiers="torch,eager", toggles=["USE_OPTIMIZED_OPS"])
    assert code == 1
    assert [run["status"] for run in report["runs"]] == ["ok", "crashed", "crashed"]
    assert "status 41" in report["runs"][1]["message"]


def test_a_case_that_raises_is_a_deviation_with_the_reason(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(
        monkeypatch,
        b"        if _amd and _amd.on.rms_norm:\n",
        b"        if _amd and _amd.on.rms_norm:\n            raise ArithmeticError('planted')\n",
    )
    code, report, _ = verify(model, capsys, tiers="torch", toggles=["USE_OPTIMIZED_OPS"])
    assert code == 1
    assert [case["error"] for case in report["runs"][1]["cases"]] == ["ArithmeticError: planted"] * 3


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
    found, report, err = verify(model, capsys, **options)
    assert found == code
    assert report["error"]["id"] == id
    assert report["error"]["remedy"]
    assert report["error"]["message"] in err


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report, _ = verify(tmp_path, capsys)
    assert code == 2
    assert report["error"]["paths"] == [str(tmp_path)]


def test_a_model_whose_weights_are_missing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    code, report, _ = verify(tmp_path, capsys)
    assert code == 2
    assert report["error"]["id"] == "model-unreadable"
    assert "cannot load" in report["error"]["message"]


def test_the_users_toggles_do_not_reach_the_workers(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USE_AITER_GEMM", "nonsense")
    monkeypatch.setenv("AMD_OPS_TIERS", "eager")
    code, report, _ = verify(model, capsys, tiers="torch", toggles=["USE_OPTIMIZED_OPS"])
    assert code == 0
    assert report["runs"][1]["ran"]["rms_norm"].keys() == {"torch"}


def test_nothing_is_written_into_the_interpreters_transformers(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = target.probe(sys.executable).package
    before = {path: path.stat().st_mtime_ns for path in (package / "models" / "llama").rglob("*")}
    assert verify(model, capsys, tiers="torch", toggles=["off"])[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (package / "models" / "llama").rglob("*")} == before
