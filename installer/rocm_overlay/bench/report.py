"""The versioned report: raw samples, statistics, parity, verdicts. Everything that is shown is computed here once.

prefill is TTFT, per_token is ITL, call is end to end. prefill, decode, per_token, forward and train are names of
optimum-benchmark, too; `bench.optimum` writes a cell as its report.
"""

from __future__ import annotations

import platform
import statistics
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from .. import __version__
from .matrix import AGAIN, STOCK, Cell, shape_name
from .parity import Parity, compare
from .process import Process
from .runner import Setup
from .statistics import Rounds, Verdict, judge, noise_of, summarise

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
    rows = [_row(setup, cell, by_cell, noise[cell.against], size) for cell in setup.cells]
    return Built(
        {
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": sys.argv[1:],
            "seconds": round(seconds, 1),
            "machine": machine(setup, size),
            "model": {
                "path": setup.model.name,
                "weights": "saved" if setup.has_weights else f"seeded ({setup.seed})",
                "parameters": size["parameters"],
                "bytes": size["bytes"],
                "layers": size["layers"],
                "dtype": setup.dtype,
            },
            "protocol": {
                "rounds": setup.rounds,
                "runs": setup.runs,
                "warmup": setup.warmup,
                "fresh_process_per_cell": True,
                "ranks": setup.ranks,
            },
            "noise": {name: dict(values) for name, values in noise.items()},
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
        "python": setup.interpreter.python,
        "torch": setup.interpreter.torch,
        "transformers": setup.interpreter.transformers,
        "overlay": __version__,
    }


def rounds_of(processes: list[Process], key: str) -> list[list[float]]:
    """Return one list of samples per round, of complete processes, in the order of rounds."""
    found = []
    for process in sorted(processes, key=lambda p: p.round):
        if process.status == "ok":
            values = [run[key] for run in process.runs]
            found.append([v for value in values for v in (value if isinstance(value, list) else [value])])
    return found


def _noise(setup: Setup, by_cell: dict[str, list[Process]], cell: Cell) -> dict[str, float]:
    """The largest |log ratio| between stock and stock again, by measure; nothing where that was not measured."""
    again = by_cell.get(f"{AGAIN} {shape_name(cell.work)}", [])
    stock = by_cell.get(cell.against, [])
    return {
        name: noise_of(rounds_of(again, key), rounds_of(stock, key))
        for name, key in MEASURES[setup.mode]
        if again and stock
    }


def _row(
    setup: Setup, cell: Cell, by_cell: dict[str, list[Process]], noise: dict[str, float], size: dict[str, Any]
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
            verdict = _verdict(rounds_of(mine, key), rounds_of(stock, key), noise.get(name, 0.0), parity)
            row["verdicts"][name] = verdict.as_json()
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
    measures = {name: _latency(rounds_of(mine, key)) for name, key in MEASURES[setup.mode]}
    return {"rank": rank, "host": good[0].ranks[rank]["host"], "measures": measures}


def _verdict(ours: Rounds, stock: Rounds, noise: float, parity: Parity) -> Verdict:
    """Judge only what computes the same: a wrong answer has no speed."""
    if not ours or not stock:
        return Verdict("same", "one of the two was not measured")
    if not parity.ok:
        return Verdict("same", f"parity failed, so no speed is told: {parity.reason}")
    return judge(ours, stock, noise)


def _measures(setup: Setup, cell: Cell, good: list[Process]) -> dict[str, Any]:
    found = {name: _latency(rounds_of(good, key)) for name, key in MEASURES[setup.mode]}
    loads = [[p.loaded_s] for p in good if p.loaded_s is not None]
    found["load"] = _latency(loads)
    cold = [[_cold(p)] for p in good if p.first]
    found["first_call"] = _latency(cold)
    if setup.mode == "generate":
        decode = [[sum(run["itl"]) for run in p.runs] for p in good]
        found["decode"] = _latency(decode)
    return found


def _cold(process: Process) -> float:
    value = process.first.get("e2e", 0.0)
    return float(value)


def _latency(rounds: Rounds) -> dict[str, Any]:
    return {"latency": {**summarise(rounds).as_json(), "unit": "s", "values": [list(one) for one in rounds]}}


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
