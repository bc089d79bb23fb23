"""Starts `tests.ranks.worker` on several gloo ranks with torchrun, and reads what each rank found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2


def environment() -> dict[str, str]:
    """The environment without toggles, with this checkout on the path; one thread per rank."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("USE_", "AMD_OPS", "FORCE_"))}
    path = os.pathsep.join([str(ROOT), str(ROOT / "installer")])
    return {**clean, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def torchrun(*arguments: str) -> list[str]:
    """The command that runs something on two processes of this machine, on a free port."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", *arguments]


def run(folder: Path, scenario: str, *architectures: str, planted: int | None = None) -> list[dict[str, Any]]:
    """Run a scenario; per rank, what `worker.compare` found by architecture. ``planted`` names a rank to be wrong."""
    more = {} if planted is None else {"TESTS_RANKS_PLANT_A_FAULT": str(planted)}
    done = subprocess.run(
        torchrun("-m", "tests.ranks.worker", scenario, str(folder), *architectures),
        cwd=ROOT, env={**environment(), **more}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return [json.loads((folder / f"rank{rank}.json").read_bytes()) for rank in range(RANKS)]
