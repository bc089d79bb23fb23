"""Run the tests of interpreted/ where TRITON_INTERPRET is set before triton is imported, and in no other process."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "interpreted"
FILES = sorted(path.name for path in HERE.glob("test_*.py"))

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: the extra `interpret` brings the release whose interpreter computes rightly",
)


def interpret(name: str, patience: float = 590) -> None:
    """Run one file of interpreted/ in a process of its own; everything in it must run and pass."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this process interprets already and collects interpreted/ itself")
    environ = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    for leftover in [key for key in environ if key.startswith("PYTEST_")]:
        del environ[leftover]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / name)]
    done = subprocess.run(
        command, env=environ, cwd=HERE.parents[2], capture_output=True, text=True, check=False, timeout=patience
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) > 0
    assert "skipped" not in done.stdout, done.stdout


@pytest.mark.parametrize("name", FILES)
def test_the_interpreted_kernels(name: str) -> None:
    interpret(name)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_training_steps_of_every_model() -> None:
    interpret("every_model.py", 3600)


@pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None,
    reason="liger-kernel is not installed: the extra `interpret` brings it",
)
def test_the_real_liger() -> None:
    interpret("real_liger.py")
