"""The same tables and histories on the other line: its experts are parameters, its layers are called otherwise."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
LONG = "not five_hundred and not two_hundred and not planted and not other_line"


@pytest.mark.full
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(
    "file", ["test_writes.py", "test_touches.py", "test_memory.py", "test_threads.py", "test_histories.py"]
)
def test_the_other_line(file: str, python_with: Callable[[str], str]) -> None:
    command = [python_with("5.23.0"), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file), "-k", LONG]
    done = subprocess.run(
        [*command, "-m", "full or not full"], cwd=FOLDER.parents[1], env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=5000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
