"""How every command answers a program: one shape of success, one of failure, each as its published schema says."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rocm_overlay import console
from rocm_overlay.app import CONTENTS, run
from rocm_overlay.errors import Finding, GeneratorError, OverlayError, Place, SeveralErrors, UsageError

from tests.install.support import run_process
from tests.schemas import SCHEMAS, complaints, validator

Answer = Callable[..., tuple[int, Any, str]]


def commands() -> Iterator[str]:
    """Every command, ``tune.report`` for one below another."""
    for (_, room), names in CONTENTS.items():
        built = typer.main.get_group(importlib.import_module(f"rocm_overlay.{room}.cli").app).commands
        for name in names:
            below = getattr(built[name], "commands", {})
            if not below or getattr(built[name], "invoke_without_command", False):
                yield name
            yield from (f"{name}.{sub}" for sub in below)


COMMANDS = list(commands())
# One input per command that it must refuse, besides an option that no command has. {tmp} is an empty folder.
REFUSED = {
    "install": "--transformers nonsense --site-packages {tmp}",
    "revert": "--site-packages {tmp}/none",
    "recover": "--site-packages {tmp}/none",
    "status": "--site-packages {tmp}/none",
    "diff": "--site-packages {tmp}/none",
    "doctor": "--launcher nonsense",
    "list": "nonsense",
    "info": "nonsense",
    "run": "-- true",
    "env": "--profile nonsense",
    "verify": "--model {tmp}/none",
    "qualify": "--model {tmp}/none",
    "warmup": "--profile {tmp}/none.json",
    "bench": "--model {tmp}/none",
    "bench.compare": "{tmp}/a.json {tmp}/b.json",
    "profile": "--model {tmp}/none",
    "tune.shapes": "--model {tmp}/none",
    "tune.report": "--model {tmp}/none --gpu MI300X",
    "tune.estimate": "--model {tmp}/none",
    "tune.run": "--model {tmp}/none -o {tmp}/out.csv --gpu MI300X",
    "tune.check": "{tmp}/none.csv --aiter-version 0.1.20",
    "tune.merge": "{tmp}/none.csv -o {tmp}/out.csv --gpu MI300X --aiter-version 0.1.20",
    "tune.env": "--gpu nonsense",
    "tune.diff": "{tmp}/a.csv {tmp}/b.csv",
    "tune.prune": "{tmp}/none.csv -o {tmp}/out.csv --gpu MI300X --aiter-version 0.1.20",
    "tune.import-tunableop": "{tmp}/none.csv -o {tmp}/out.csv --gpu MI300X",
    "tune.export-tunableop": "{tmp}/none.csv -o {tmp}/out.csv",
    "export": "--transformers 9.99",
    "attest": "--site-packages {tmp}/none",
    "gen": "--all --source {tmp}/none --dry-run",
    "drift": "{tmp}/a {tmp}/b",
    "synth.single_debug": "--seed nonsense",
    "synth.parallel": "--output-dir /proc/none --compile-backend none",
    "synth.validate": "{tmp}/none",
    "synth.merge": "{tmp}/none",
    "synth.fuzz": "--target nonsense",
    "scan": "{tmp}/none",
}


@pytest.fixture
def answer(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Answer:
    """Return ``answer(words...)``: exit code, what is on stdout as JSON, and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, Any, str]:
        code = run(list(words))
        out, err = capfd.readouterr()
        return code, json.loads(out) if out else None, err

    return call


def test_every_command_has_a_refused_input_and_a_schema_that_travels() -> None:
    assert set(REFUSED) == set(COMMANDS)
    assert {path.name for path in SCHEMAS.glob("*.json")} == {f"{name}.1.json" for name in [*COMMANDS, "error"]}


@pytest.mark.parametrize("how", ["input", "option"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_in_one_shape(command: str, how: str, answer: Answer, tmp_path: Path) -> None:
    words = REFUSED[command].format(tmp=tmp_path).split() if how == "input" else ["--no-such-option"]
    code, found, err = answer(*command.split("."), "--json", *words)
    assert (found["ok"], found["exit_code"], found["error"]["code"]) == (False, code, code)
    assert 2 <= code <= 9
    assert complaints(command, found) == []
    assert list(validator("error").iter_errors(found)) == []
    assert found["schema"] == f"amd-overlay.{command}/1"
    lines = err.splitlines()
    name = f"overlay {command.replace('.', ' ')}: "
    assert sum(line.startswith(name) for line in lines) == 1, "one sentence"
    assert name * 2 not in err
    assert lines[-1].startswith("  next: "), "one next step"
    assert len(lines[-1]) <= 200 + len("  next: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [("gen", "llama", "--diff"), ("gen", "--help"), ("drift", "4.57.6", "5.23.0")])
def test_a_missing_library_is_named_with_what_installs_it(words: tuple[str, ...]) -> None:
    """In a process of its own, where the import of libcst fails as it does without it."""
    program = "import sys; sys.modules['libcst'] = None; from rocm_overlay.app import run; sys.exit(run(sys.argv[1:]))"
    done = run_process(*words, "--json", code=program)
    assert done.code == 2
    assert json.loads(done.out)["error"]["id"] == "no-library"
    sentence, step = done.err.splitlines()
    assert sentence.startswith(f"overlay {words[0]}: this command needs libcst, which is not installed")
    assert step == "  next: run `pip install libcst`"


@pytest.mark.parametrize("words", [["instal"], ["--no-such-option"], ["install", "stat"]])
def test_what_is_no_command_line_is_refused_in_the_same_shape(words: list[str], answer: Answer) -> None:
    code, found, _ = answer(*words, "--json")
    assert (code, found["ok"]) == (2, False)
    assert list(validator("error").iter_errors(found)) == []


def test_suggestions_stay_within_the_group(answer: Answer) -> None:
    assert "Did you mean report?" in answer("tune", "reprt")[2]
    assert "revert" not in answer("synth", "generate")[2]


def test_an_error_travels_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """With its findings, its place, and numbers that JSON has no word for."""
    finding = Finding("error", "bad-row", "a.csv", 3, "no number", "correct it")
    error = UsageError("bad", "it is bad", remedy="mend it", findings=[finding], place=Place("a.csv", 3), found="x")
    assert console.failure("tune.check", error, as_json=True) == 2
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert complaints("tune.check", answer) == []
    assert answer["error"]["findings"][0]["line"] == 3
    assert err.splitlines() == [
        "overlay tune check: a.csv:3: it is bad",
        "  found: x",
        "a.csv:3: error: no number [bad-row] (correct it)",
        "  next: mend it",
    ]


def test_several_errors_are_one_answer(capsys: pytest.CaptureFixture[str]) -> None:
    several = SeveralErrors([GeneratorError("first", place=Place("a.py", 1)), UsageError("u", "second")])
    assert console.failure("gen", several, as_json=True) == 2
    answer = json.loads(capsys.readouterr().out)
    assert complaints("gen", answer) == []
    assert [one["message"] for one in answer["errors"]] == ["first", "second"]
    assert [one["message"] for one in answer["error"]["findings"]] == ["first", "second"]


def test_a_bug_is_an_answer_too(capsys: pytest.CaptureFixture[str]) -> None:
    error = ZeroDivisionError("oh")
    with contextlib.suppress(ZeroDivisionError):
        raise error
    assert console.failure("status", error, as_json=True) == 70
    out, err = capsys.readouterr()
    assert complaints("status", json.loads(out)) == []
    assert "Traceback" in err


def test_json_has_no_number_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_document({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": float("-inf")}})
    answer = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (answer["a"], answer["b"], answer["c"]) == (None, [None, 1.5], {"d": None})


def test_an_error_keeps_its_facts_between_processes() -> None:
    import pickle

    for error in (UsageError("a", "b", remedy="c", paths=["d"]), GeneratorError("e", expected="f")):
        again: OverlayError = pickle.loads(pickle.dumps(error))
        assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))
