"""What the benchmarks share: interleaved timing in processor time, bootstrap intervals, result files."""

from __future__ import annotations

import json
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Run = Callable[[], object]


def cpu_ns(run: Run, calls: int = 1) -> float:
    """Processor time of this thread for one call, in ns."""
    start = time.thread_time_ns()
    for _ in range(calls):
        run()
    return (time.thread_time_ns() - start) / calls


def interleaved(variants: dict[str, Run], rounds: int, calls: int = 1) -> dict[str, list[float]]:
    """``rounds`` samples of every variant in ns, one after the other in a new order each round."""
    samples: dict[str, list[float]] = {name: [] for name in variants}
    order, shuffle = list(variants), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            samples[name].append(cpu_ns(variants[name], calls))
    return samples


def ratio_interval(ours: Sequence[float], stock: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """Ratio of the medians and its 95 % bootstrap interval."""
    pick = random.Random(0).choices
    found = sorted(
        median(pick(list(ours), k=len(ours))) / median(pick(list(stock), k=len(stock))) for _ in range(draws)
    )
    return median(ours) / median(stock), found[int(0.025 * draws)], found[int(0.975 * draws)]


def machine() -> dict[str, str]:
    """What the numbers were measured on, in the words of `overlay bench`'s reports."""
    import torch
    from rocm_overlay.bench.measure import cpu_name

    on_gpu = torch.cuda.is_available()
    return {
        "device": "cuda" if on_gpu else "cpu",
        "device_name": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def save(path: Path | None, schema: str, content: dict[str, Any]) -> None:
    """Write the raw numbers, with what they were measured on."""
    if path is None:
        return
    head = {
        "schema": schema,
        "command": " ".join(["python", *sys.argv]).replace(str(ROOT) + "/", ""),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "python": platform.python_version(),
        "machine": machine(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, **content}, indent=1) + "\n")
