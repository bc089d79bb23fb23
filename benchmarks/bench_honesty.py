"""Does `overlay bench` tell a difference where there is one, and none where there is none?

Real processes on a small model: stock against stock (A/A), and stock against the same code whose decoder layers spin
for a fifth of their time longer. Every A/A run must tell nothing, every planted run must tell "slower".

    python benchmarks/bench_honesty.py [--times 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import save

# A module that Python imports at its start; it only acts in the cell that sets the variable.
PLANTED = """
import os
if os.environ.get("PLANT_SLOW"):
    import time
    import torch
    plain = torch.nn.Module.__call__
    def call(self, *args, **kwargs):
        if type(self).__name__ != "LlamaDecoderLayer":
            return plain(self, *args, **kwargs)
        start = time.perf_counter()
        result = plain(self, *args, **kwargs)
        end = time.perf_counter()
        while time.perf_counter() - end < 0.25 * (end - start):
            pass
        return result
    torch.nn.Module.__call__ = call
"""
CONFIG = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 512}


def main() -> None:
    """Run both kinds and print how often each told what it must."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the outcomes to this file")
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _lay_out(folder)
        for number in range(arguments.times):
            runs.append(_once(folder, number))
            print(f"run {number + 1}: A/A {runs[-1]['again']}, planted {runs[-1]['planted']}", flush=True)
    quiet = sum(set(run["again"].values()) == {"same"} for run in runs)
    found = sum(run["planted"]["per_token"] == "slower" for run in runs)
    print(
        f"A/A told no difference in {quiet} of {len(runs)} runs; the planted fifth was told in {found} of {len(runs)}"
    )
    save(arguments.json, "amd-overlay.bench-honesty/1", {"runs": runs})
    if quiet < len(runs) or found < len(runs):
        raise SystemExit(1)


def _lay_out(folder: Path) -> None:
    from examples.tiny_models import build, tiny_config

    build(tiny_config("llama", **CONFIG)).save_pretrained(folder / "model")
    (folder / "plant").mkdir()
    (folder / "plant" / "sitecustomize.py").write_text(PLANTED)
    env = f"{{PLANT_SLOW: 1, PYTHONPATH: {folder / 'plant'}}}"
    (folder / "cells.yaml").write_text(f"cells: [{{name: planted, build: stock, env: {env}}}]\n")


def _once(folder: Path, number: int) -> dict[str, Any]:
    # A run takes 20 ms and its process five seconds: with few runs, what disturbs the machine for a moment is a round.
    work = ["--isl", "32", "--osl", "24", "--runs", "60", "--rounds", "5", "--dtype", "float32"]
    command = [sys.executable, "-m", "rocm_overlay", "bench", "--model", "model", "--matrix", "cells.yaml", *work]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "-o", f"out{number}", "--json"], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    if not done.stdout:
        raise SystemExit(f"the benchmark failed:\n{done.stderr}")
    rows = {row["name"]: row for row in json.loads(done.stdout)["cells"]}
    outcomes = {
        name: {measure: verdict["outcome"] for measure, verdict in rows[cell]["verdicts"].items()}
        for name, cell in (("again", "stock again"), ("planted", "planted"))
    }
    ratio = rows["planted"]["verdicts"]["per_token"]["ratio"]
    return {**outcomes, "planted_ratio": ratio, "noise": rows["stock"]["measures"]["per_token"]["latency"]["cv"]}


if __name__ == "__main__":
    main()
