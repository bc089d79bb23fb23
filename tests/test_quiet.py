"""With -q a command says nothing beside data, but never leaves anybody with an exit code alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rocm_overlay import console
from rocm_overlay.app import run
from rocm_overlay.tune.schema import COLUMNS

HEAD = ",".join(COLUMNS) + "\n"
Inputs = Callable[[str, str], str]


@pytest.fixture
def given(tmp_path: Path) -> Inputs:
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def failing(given: Inputs) -> dict[str, list[str]]:
    """Commands that do their work and end with 1."""
    return {
        "doctor": ["doctor", "--python", "/no/such/python"],
        "scan": ["scan", given("one.cu.py", "import pycuda.driver\n")],
        "synth.validate": ["synth", "validate", given("two.py", "")],
        "tune.check": ["tune", "check", given("three.csv", HEAD + "1,2\n")],
    }


@pytest.mark.parametrize("command", ["doctor", "scan", "synth.validate", "tune.check"])
def test_a_quiet_command_that_fails_says_why_and_what_next(
    command: str, given: Inputs, capsys: pytest.CaptureFixture[str]
) -> None:
    words = failing(given)[command]
    loud = run(words)
    answer, _ = capsys.readouterr()
    assert run([*words, "-q"]) == loud == 1
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert out == ""
    assert first == f"overlay {command.replace('.', ' ')}: {answer.splitlines()[0].strip()}"
    assert last == "  next: run it without -q for the rest"


def test_a_quiet_command_that_succeeds_says_nothing(given: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan", "-q", given("one.py", "import os\n")]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_quiet_command_that_explained_itself_does_not_do_so_twice(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_level(console.QUIET)
    console.show("STOCK, and more")
    console.complain("overlay status: not applied (STOCK)")
    console.explain("status")
    assert capsys.readouterr() == ("", "overlay status: not applied (STOCK)\n")


def test_json_is_an_explanation(given: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tune", "check", "-q", "--json", given("three.csv", HEAD + "1,2\n")]) == 1
    out, err = capsys.readouterr()
    assert '"exit_code": 1' in out
    assert err == ""


def test_what_is_evaluated_or_read_is_data_and_stays(
    given: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("AITER_CONFIG_GEMM_BF16", raising=False)
    assert run(["tune", "shapes", "-q", "--model", "llama-3.1-8b", "--m-ladder", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("M,N,K")
    assert err == ""
    assert run(["tune", "env", "-q", "--gpu", "gfx942:304", "--user", given("t.csv", HEAD)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("export AITER_CONFIG_GEMM_BF16")
    assert err == ""
