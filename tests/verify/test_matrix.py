"""docs/parity.md says what a run gives; a row that deviates must not be there at all."""

from __future__ import annotations

import pytest

from tests.verify import matrix

SAMPLE = ("llama", "gemma2", "mixtral")


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
    assert not [line for line in lines.values() if "deviates" in line]


@pytest.mark.parametrize("model", SAMPLE)
def test_a_sampled_row_is_what_a_run_gives(model: str) -> None:
    assert matrix.line(model) == written()[model]


@pytest.mark.full
@pytest.mark.parametrize("model", sorted(set(matrix.architectures()) - set(SAMPLE)))
def test_every_row_is_what_a_run_gives(model: str) -> None:
    assert matrix.line(model) == written()[model]


def test_sections_of_other_releases_are_kept() -> None:
    first = matrix.merged("", "## transformers 5.0.0\n\n| a |\n")
    both = matrix.merged(first, "## transformers 4.57.6\n\n| b |\n")
    assert both.index("4.57.6") < both.index("5.0.0")
    assert matrix.merged(both, "## transformers 5.0.0\n\n| a |\n") == both
