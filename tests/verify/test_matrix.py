"""docs/parity.md says what a run gives; a row that deviates must not be there at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.verify import matrix

SAMPLE = ("llama", "gemma2", "mixtral", "paligemma")


def written() -> dict[str, str]:
    """The lines of the installed release by model."""
    text = matrix.DOC.read_text(encoding="utf-8")
    if matrix.section() not in text:
        pytest.skip("docs/parity.md has no section for the installed transformers")
    part = text.split(matrix.section() + "\n", 1)[1].split("\n## ", 1)[0]
    return {line.split("|")[1].strip(): line for line in part.splitlines() if line.startswith("| ")}


def test_every_architecture_has_a_row_and_none_deviates() -> None:
    lines = written()
    assert set(lines) == {*matrix.architectures(), "model"}
    assert "deviates" not in matrix.DOC.read_text(encoding="utf-8")


def run(*models: str) -> list[str]:
    """The lines that a process of its own prints."""
    command = [sys.executable, "-m", "tests.verify.matrix", "--models", ",".join(models)]
    done = subprocess.run(command, cwd=matrix.DOC.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_sampled_rows_are_what_a_run_gives() -> None:
    assert run(*SAMPLE) == [written()[model] for model in SAMPLE]


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("release", ["4.53.3", "4.57.6", "5.23.0", "5.24.0"])
def test_every_row_is_what_a_run_gives(release: str, python_with: Callable[[str], str]) -> None:
    command = [python_with(release), "-m", "tests.verify.matrix", "--check"]
    done = subprocess.run(command, cwd=matrix.DOC.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sections_of_other_releases_are_kept() -> None:
    first = matrix.merged("", "## transformers 5.0.0\n\n| a |\n")
    both = matrix.merged(first, "## transformers 4.57.6\n\n| b |\n")
    assert both.index("4.57.6") < both.index("5.0.0")
    assert matrix.merged(both, "## transformers 5.0.0\n\n| a |\n") == both
