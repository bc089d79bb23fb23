"""Small programs and runs of the command that several test files need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def program(
    body: str = "return x + self.proj(x)", init: str = "self.proj = nn.Linear(8, 8)", name: str = "Small"
) -> str:
    """A program of good form with this statement in forward (and this one in __init__)."""
    lines = [f"        {line}" for line in body.splitlines()]
    return (
        "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n\n\n"
        f"class SynthModel_{name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {init}\n\n"
        "    def forward(self, x):\n" + "\n".join(lines) + "\n\n\n"
        "def get_inputs():\n    return [torch.randn(2, 4, 8)]\n\n\ndef get_init_inputs():\n    return [], {}\n"
    )


@dataclass
class Done:
    """What a run of the command left."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        return json.loads(self.out)  # type: ignore[no-any-return]


def environment(**more: str) -> dict[str, str]:
    """The environment of a child: this checkout first, no keys of the machine."""
    kept = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL", "_MODEL"))}
    path = os.pathsep.join([str(ROOT), str(ROOT / "installer")])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def command(*arguments: object) -> list[str]:
    """The command line of `overlay synth`."""
    return [sys.executable, "-m", "rocm_overlay.synth", *map(str, arguments)]


def synth(*arguments: object, cwd: Path | None = None, **more: str) -> Done:
    """Run `overlay synth` in a process of its own."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, cwd=cwd, env=environment(**more), timeout=300
    )
    return Done(done.returncode, done.stdout, done.stderr)


def journal(folder: Path) -> list[dict[str, Any]]:
    """The slots that a journal holds."""
    lines = (folder / ".synth-journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]
