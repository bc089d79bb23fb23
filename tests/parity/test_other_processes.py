"""Parity where this process cannot show it: without amd_ops, and on the release with the other decorator form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity import twins

ROOT = Path(__file__).resolve().parents[2]


def run_child(*arguments: str, first_on_path: Path | None = None) -> dict[str, Any]:
    """Run `tests.parity.child` and return what it printed."""
    paths = [*([str(first_on_path)] if first_on_path else []), str(ROOT), str(ROOT / "installer")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("USE_", "AMD_OPS", "FORCE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.parity.child", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**clean, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_without_amd_ops_a_left_behind_overlay_is_stock() -> None:
    found = run_child("--without-amd-ops", "llama", "gemma2", "phi3", "mixtral")
    assert found["amd_ops"] == [False] * 4
    assert all(base.startswith("sha256:") for base in found["overlay"])
    assert found["cases"] == 4 * len(twins.RUNS)
    assert found["deviating"] == []


def test_4_57_3_has_texts_of_its_own(stock_tree: Callable[[str], Path]) -> None:
    """4.57.3 decorates with ``@check_model_inputs()``: the 4.57.6 text would be broken there."""
    found = run_child("--toggles", "llama", "gemma2", first_on_path=stock_tree("4.57.3"))
    assert found["transformers"] == "4.57.3"
    assert found["amd_ops"] == [True, True]
    installed = Path(twins.stock_module("llama").__file__ or "").read_bytes()
    assert found["overlay"][0].encode() not in twins.overlay_text("llama", installed)
    assert found["deviating"] == []


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_an_error_inside_amd_ops_is_not_taken_for_its_absence(architecture: str, tmp_path: Path) -> None:
    """Only a missing amd_ops falls back to stock; a broken one is an error that names what is missing."""
    package = tmp_path / "amd_ops"
    package.mkdir()
    (package / "__init__.py").write_text("import a_module_that_does_not_exist\n")
    done = subprocess.run(
        [sys.executable, "-c", f"from tests.parity import twins; twins.overlay_module({architecture!r})"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "installer")]),
             "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "No module named 'a_module_that_does_not_exist'" in done.stderr
