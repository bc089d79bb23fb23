"""A cell as optimum-benchmark's ``benchmark_report.json``: its target names, units and statistics (read in 0.6.0).

There a target has memory, latency, throughput, energy and efficiency, each None where it was not measured; a standard
deviation is that of the population, ``stdev_`` its share of the mean in percent, and throughput comes from the mean.
"""

from __future__ import annotations

import statistics
from typing import Any

# Our measure -> the target that it is there. A text generation has no ``call``: that is a diffusion pipeline's.
TARGETS = {
    "generate": {
        "load": "load_model", "first_call": "first_generate", "call": "generate", "prefill": "prefill",
        "decode": "decode", "per_token": "per_token",
    },
    "forward": {"load": "load_model", "first_call": "first_forward", "forward": "forward"},
    "train": {"train": "train"},
}  # fmt: skip
_MEMORY = ("max_ram", "max_global_vram", "max_process_vram", "max_reserved", "max_allocated")
_NOT_MEASURED = {"energy": None, "efficiency": None}


def report(row: dict[str, Any]) -> dict[str, Any]:
    """Return the targets of one row of our report."""
    work = row["work"]
    found = {}
    for ours, theirs in TARGETS[work["mode"]].items():
        latency = _latency(row["measures"][ours]["latency"])
        found[theirs] = {
            "memory": None if theirs.startswith(("load", "first")) else _memory(row["memory"]),
            "latency": latency,
            "throughput": _throughput(theirs, work, latency["mean"]),
            **_NOT_MEASURED,
        }
    return found


def _latency(ours: dict[str, Any]) -> dict[str, Any]:
    values = [value for one in ours["values"] for value in one]
    mean, stdev = statistics.fmean(values), statistics.pstdev(values)
    return {
        "unit": "s",
        "values": values,
        "count": len(values),
        "total": sum(values),
        "mean": mean,
        **{name: ours[name] for name in ("p50", "p90", "p95", "p99")},
        "stdev": stdev,
        "stdev_": 100 * stdev / mean if mean else 0.0,
    }


def _memory(peak: dict[str, int]) -> dict[str, Any]:
    return {"unit": "MB", **{name: peak[name] / 1e6 if name in peak else None for name in _MEMORY}}


def _throughput(target: str, work: dict[str, Any], mean: float) -> dict[str, Any] | None:
    if target == "decode":
        return {"unit": "tokens/s", "value": work["batch"] * (work["osl"] - 1) / mean}
    if target in ("generate", "prefill", "forward", "train"):
        return {"unit": "samples/s", "value": work["batch"] / mean}
    return None
