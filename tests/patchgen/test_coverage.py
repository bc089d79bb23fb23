"""The committed tables of what the recipes reach, and that nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.overlays.recipes import digest, recipe_set
from rocm_overlay.patchgen import coverage
from rocm_overlay.patchgen.trees import open_tree

from tests.patchgen.test_whole_tree import check_result

FOLDER = Path(__file__).resolve().parents[2] / "docs/coverage"
LEAST = {"4.53.3": 100, "4.57.6": 150, "5.23.0": 300, "5.24.0": 300}
each_release = pytest.mark.parametrize("release", LEAST)


def committed(release: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{release}.json").read_text(encoding="utf-8"))
    return found


@each_release
def test_the_table_says_enough_and_its_sums_agree(release: str) -> None:
    about = committed(release)
    assert (about["schema"], about["release"]) == ("amd-overlay.coverage/1", release)
    assert about["changed"] == len(about["sites"]) >= LEAST[release]
    for row in about["table"]:
        assert row["files"]["conflict"] == 0
        assert row["sites"] == sum(one.get(row["recipe"], 0) for one in about["sites"].values())
        assert row["files"]["applied"] == sum(row["recipe"] in one for one in about["sites"].values())
        assert sum(row["files"].values()) == about["files"]


@each_release
def test_nothing_is_lost_in_a_sample(release: str, wheel: Callable[[str], Path]) -> None:
    about = committed(release)
    # The added file once had two recipes at one statement.
    sample = sorted({*sorted(about["sites"])[::25], "models/xlm_roberta_xl/modeling_xlm_roberta_xl.py"})
    made = coverage.results(open_tree(wheel(release)), recipe_set(), sample)
    assert len(made) == len(sample)
    assert coverage.losses(about["sites"], made) == []


@pytest.mark.full
@pytest.mark.timeout(1800)
@each_release
def test_nothing_is_lost_in_the_whole_release(release: str, wheel: Callable[[str], Path]) -> None:
    tree = open_tree(wheel(release))
    about = committed(release)
    made = coverage.results(tree, recipe_set())
    assert len(made) == len(tree.modeling_files) == about["files"]
    assert coverage.losses(about["sites"], made) == []
    for result in made:
        check_result(result)
    if about["recipes"] == digest():
        assert about == coverage.document(release, made, recipe_set())


def test_a_loss_is_named(wheel: Callable[[str], Path]) -> None:
    path = "models/llama/modeling_llama.py"
    (made,) = coverage.results(open_tree(wheel("4.57.6")), recipe_set(), [path])
    assert coverage.losses({path: {"rms_norm": 2, "gone": 1}}, [made]) == [
        f"{path}: rms_norm edits 1 sites, 2 before",
        f"{path}: gone edits 0 sites, 1 before",
    ]


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "transformers"
    (root / "models/x").mkdir(parents=True)
    (root / "__init__.py").write_text('__version__ = "9.9.9"\n')
    (root / "models/x/modeling_x.py").write_text("import torch\n")
    arguments = ["--source", str(root), "-o", str(tmp_path / "out"), "--known", str(tmp_path / "known")]
    assert coverage.main(arguments) == 0
    assert coverage.main([*arguments, "--check"]) == 0
    (tmp_path / "out/9.9.9.json").write_text("other")
    assert coverage.main([*arguments, "--check"]) == 1
    assert "is not what the recipes reach now\n  found: 9.9.9.json" in capsys.readouterr().err
