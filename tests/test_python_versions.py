"""Every file of ours is Python 3.10, and compiles without a warning on the newest Python that is here."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest

from tests.tools import matrix

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path
    for folder in ("amd_ops", "installer/rocm_overlay", "overlays/recipes")
    for path in (ROOT / folder).rglob("*.py")
)
COMPILE = """
import sys, warnings
warnings.simplefilter("error")
for path in sys.stdin.read().split("\\0"):
    compile(open(path, encoding="utf-8").read(), path, "exec")
"""


def test_the_oldest_python_reads_every_file() -> None:
    assert len(FILES) > 200
    for path in FILES:
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))


@pytest.mark.parametrize("version", ["3.10", "3.13", "3.14"])
def test_other_pythons_compile_every_file(version: str) -> None:
    python = matrix.interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    given = "\0".join(map(str, FILES))
    done = subprocess.run([python, "-c", COMPILE], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_of_the_matrix_is_what_its_runs_said() -> None:
    results = json.loads(matrix.RESULTS.read_text())
    assert matrix.PAGE.read_text() == "\n".join(matrix.page(results)) + "\n"
    assert {cell.transformers for cell in matrix.CELLS} >= {"4.53.3", "4.57.6", "5.23.0"}
