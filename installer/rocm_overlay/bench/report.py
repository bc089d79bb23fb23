"""The versioned report: raw samples, statistics, parity, verdicts. Everything that is shown is computed here once.

prefill is TTFT, per_token is ITL, call is end to end. prefill, decode, per_token, forward and train are names of
optimum-benchmark, too; `bench.optimum` writes a cell as its report.
"""

from __future__ import annotations

import math
import platform
import statistics
import sys
from dataclasses import dataclass, replace
from typing import Any

from .. import __version__
from ..console import facts
from ..journal import stamp
from ..statistics import Rounds, Verdict, bootstrap, faster, log_ratios, summarise
from .matrix import AGAIN, STOCK, Cell, shape_name
from .parity import Parity, compare
from .process import Process
from .runner import Setup

SCHEMA = "amd-overlay.bench/1"
MAX_CLOCK_JUMP = 1.0
# What is measured, by mode: name in the report, key in a run's event. The first is the headline.
MEASURES = {
    "generate": (("per_token", "itl"), ("prefill", "ttft"), ("call", "e2e")),
    "train": (("train", "e2e"),),
    "forward": (("forward", "e2e"),),
}


@dataclass(frozen=True)
class Built:
    """The report, and whether everything in it could be measured and agrees with stock."""

    content: dict[str, Any]

    @property
    def ok(self) -> bool:
        """True when every cell was measured whole and none failed parity."""
        return all(row["status"] == "ok" and row["parity"]["ok"] for row in self.content["cells"])


def build(setup: Setup, processes: list[Process], size: dict[str, Any], seconds: float) -> Built:
    """Assemble the report of a run."""
    by_cell = {cell.id: [p for p in processes if p.cell == cell.id] for cell in setup.cells}
    noise = {cell.against: _noise(setup, by_cell, cell) for cell in setup.cells}
    judged = sum(cell.name not in (STOCK, AGAIN) for cell in setup.cells) * len(MEASURES[setup.mode])
    rows = [_row(setup, cell, by_cell, noise[cell.against], judged, size) for cell in setup.cells]
    return Built(
        {
            "schema": SCHEMA,
            "created": stamp(max(process.at for process in processes)),
            "command": sys.argv[1:],
            "seconds": round(seconds, 1),
            "machine": machine(setup, size),
            "model": {
                "path": setup.model.name,
                "weights": "saved" if setup.has_weights else f"seeded ({setup.seed})",
                **{name: size[name] for name in ("parameters", "bytes", "layers")},
                "dtype": setup.dtype,
            },
            "protocol": {
                **facts(setup, "rounds runs warmup ranks"),
                "fresh_process_per_cell": True,
            },
            "noise": {name: {measure: loudest(logs) for measure, logs in one.items()} for name, one in noise.items()},
            "cells": rows,
            "warnings": _warnings(processes, rows),
        }
    )


def machine(setup: Setup, size: dict[str, Any]) -> dict[str, Any]:
    """What the numbers depend on; `compare` refuses to mix machines silently."""
    return {
        "device": size["device"],
        "device_name": size["device_name"],
        "platform": platform.platform(terse=True),
        **facts(setup.interpreter, "python torch transformers"),
        "overlay": __version__,
    }


def by_round(setup: Setup, processes: list[Process], key: str) -> list[list[float]]:
    """Return one list of samples per round, in order; it is empty where a process is missing or was not whole."""
    found: list[list[float]] = [[] for _ in range(setup.rounds)]
    for process in processes:
        if process.status == "ok":
            values = [run[key] for run in process.runs]
            found[process.round] = [v for value in values for v in (value if isinstance(value, list) else [value])]
    return found


def _noise(setup: Setup, by_cell: dict[str, list[Process]], cell: Cell) -> dict[str, list[float]]:
    """The log ratios of stock again to stock, by measure; nothing where that was not measured."""
    again = by_cell.get(f"{AGAIN} {shape_name(cell.work)}", [])
    stock = by_cell.get(cell.against, [])
    return {
        name: log_ratios(by_round(setup, again, key), by_round(setup, stock, key))
        for name, key in MEASURES[setup.mode]
        if again and stock
    }


def loudest(logs: list[float]) -> float:
    """Return how far the interval of a noise reaches from equality, as a share."""
    return math.expm1(max(map(abs, bootstrap(logs))))


def _row(
    setup: Setup,
    cell: Cell,
    by_cell: dict[str, list[Process]],
    noise: dict[str, list[float]],
    judged: int,
    size: dict[str, Any],
) -> dict[str, Any]:
    mine, stock = by_cell[cell.id], by_cell.get(cell.against, [])
    good = [process for process in mine if process.status == "ok"]
    bad = [process for process in mine if process.status != "ok"]
    parity = compare(good, [process for process in stock if process.status == "ok"], setup.dtype, cell)
    row: dict[str, Any] = {
        **cell.as_json(),
        "status": "ok" if good and not bad else bad[0].status if bad else "missing",
        "message": bad[0].message if bad else "",
        "parity": parity.as_json(),
        "measures": {},
        "verdicts": {},
    }
    if not good:
        return row
    row["hosts"] = sorted({process.host for process in good})
    row["devices"] = sorted({process.device for process in good if process.device}) or [size["device_name"]]
    row["measures"] = _measures(setup, cell, good)
    if cell.name != STOCK:
        for name, key in MEASURES[setup.mode]:
            ours, theirs = by_round(setup, mine, key), by_round(setup, stock, key)
            row["verdicts"][name] = _verdict(ours, theirs, noise.get(name, []), judged, parity).as_json()
    row["throughput"] = _throughput(cell, row["measures"])
    row["memory"] = {name: max(p.memory.get(name, 0) for p in good) for name in good[0].memory}
    if cell.work.ranks > 1:
        row["ranks"] = [_rank(setup, good, rank) for rank in range(cell.work.ranks)]
    row["launches"] = good[0].launches
    row["dispatch"] = good[0].ops
    row["roofline"] = roofline(cell, row["measures"], good, size)
    return row


def _rank(setup: Setup, good: list[Process], rank: int) -> dict[str, Any]:
    """One rank's own samples, where the row's measures are those of the slowest one."""
    mine = [replace(process, runs=process.ranks[rank]["runs"]) for process in good]
    measures = {name: _latency(by_round(setup, mine, key)) for name, key in MEASURES[setup.mode]}
    return {"rank": rank, "host": good[0].ranks[rank]["host"], "measures": measures}


def _verdict(ours: Rounds, stock: Rounds, noise: list[float], judged: int, parity: Parity) -> Verdict:
    """Judge only what computes the same: a wrong answer has no speed."""
    if not any(ours) or not any(stock):
        return Verdict("same", "one of the two was not measured")
    if not parity.ok:
        return Verdict("same", f"parity failed, so no speed is told: {parity.reason}")
    return faster(ours, stock, noise, tests=judged)


def _measures(setup: Setup, cell: Cell, good: list[Process]) -> dict[str, Any]:
    found = {name: _latency(by_round(setup, good, key)) for name, key in MEASURES[setup.mode]}
    loads = [[p.loaded_s] for p in good if p.loaded_s is not None]
    found["load"] = _latency(loads)
    cold = [[float(p.first.get("e2e", 0.0))] for p in good if p.first]
    found["first_call"] = _latency(cold)
    if setup.mode == "generate":
        decode = [[sum(run["itl"]) for run in p.runs] for p in good]
        found["decode"] = _latency(decode)
    return found


def _latency(rounds: Rounds) -> dict[str, Any]:
    """What is told of a measure; ``rounds`` numbers those of ``values`` where one was lost and left out."""
    kept = {number: list(one) for number, one in enumerate(rounds) if one}
    latency = {**summarise(list(kept.values())).as_json(), "unit": "s", "values": list(kept.values())}
    return {"latency": latency if len(kept) == len(rounds) else {**latency, "rounds": list(kept)}}


def _throughput(cell: Cell, measures: dict[str, Any]) -> dict[str, float]:
    """Tokens (or samples) per second, from medians."""
    work = cell.work

    def median(name: str) -> float:
        value: float = measures[name]["latency"]["p50"]
        return value

    if work.mode == "generate":
        return {
            "prefill_tok_s": work.batch * work.isl / median("prefill"),
            "decode_tok_s": work.batch / median("per_token"),
            "call_tok_s": work.batch * work.osl / median("call"),
        }
    name = "train" if work.mode == "train" else "forward"
    return {"samples_s": work.batch / median(name)}


def roofline(cell: Cell, measures: dict[str, Any], good: list[Process], size: dict[str, Any]) -> dict[str, Any]:
    """How near a decode step comes to reading every weight once at this machine's measured copy bandwidth. Of several
    ranks each reads its share, at the bandwidth of the slowest.

    The KV cache is left out (small at these lengths), so the share is a lower bound. Below half of the bandwidth a
    step is called host-bound: something other than memory sets its time.
    """
    bandwidths = [p.bandwidth for p in good if p.bandwidth]
    if cell.work.mode != "generate" or not bandwidths:
        return {}
    peak = statistics.median(bandwidths)
    step = measures["per_token"]["latency"]["p50"]
    achieved = size["bytes"] / cell.work.ranks / step
    return {
        "copy_bytes_per_s": peak,
        "achieved_bytes_per_s": achieved,
        "mbu": achieved / peak,
        "bound_tok_s": cell.work.batch * cell.work.ranks * peak / size["bytes"],
        "verdict": "memory-bound" if achieved >= 0.5 * peak else "host-bound",
    }


def _warnings(processes: list[Process], rows: list[dict[str, Any]]) -> list[str]:
    found = []
    jumps = [run["clock_jump"] for p in processes for run in p.runs if run.get("clock_jump", 0) > MAX_CLOCK_JUMP]
    if jumps:
        found.append(f"the wall clock jumped by up to {max(jumps):.1f} s; times here come from a monotonic clock")
    devices = sorted({p.device for p in processes if p.device})
    if len(devices) > 1:
        found.append(f"the shapes were measured on different devices: {', '.join(devices)}; compare within one only")
    for row in rows:
        if row["status"] != "ok":
            found.append(f"{row['id']}: {row['status']}: {row['message'].splitlines()[0] if row['message'] else ''}")
    return found
