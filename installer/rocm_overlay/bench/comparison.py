"""Two reports side by side: `bench compare` and the `--baseline` gate."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..statistics import faster, log_ratios
from .matrix import AGAIN, STOCK
from .report import MEASURES, SCHEMA

SCHEMA_COMPARE = "amd-overlay.bench-compare/1"
_MACHINE = ("device", "device_name")
_VERSIONS = ("python", "torch", "transformers", "overlay", "platform")
METRICS = tuple(dict.fromkeys(name for measures in MEASURES.values() for name, _ in measures))


@dataclass(frozen=True)
class Change:
    """One measure of one cell in both reports. ``outcome`` is faster, slower or same; ``ratio`` is new over old, in
    units of stock's time in each report, for stock itself in seconds.
    """

    cell: str
    measure: str
    old_s: float
    new_s: float
    ratio: float
    outcome: str
    fails: bool


@dataclass(frozen=True)
class Comparison:
    """All changes, cells that only one report has, and what else differs."""

    changes: tuple[Change, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    notes: tuple[str, ...]
    limit: float

    @property
    def failed(self) -> bool:
        """True when a measure became slower by more than the limit, or a cell of the old report is gone."""
        return any(change.fails for change in self.changes) or bool(self.only_old)

    def as_json(self) -> dict[str, Any]:
        """Return the versioned object."""
        return {
            "schema": SCHEMA_COMPARE,
            "limit": self.limit,
            "failed": self.failed,
            "changes": [asdict(change) for change in self.changes],
            "only_old": list(self.only_old),
            "only_new": list(self.only_new),
            "notes": list(self.notes),
        }


def read(path: Path) -> dict[str, Any]:
    """Read a report; UsageError when it is none of ours."""
    remedy = "pass the report.json that `overlay bench -o DIR` wrote"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError("no-report", f"{path} cannot be read: {error}", remedy=remedy, paths=[path]) from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        message = f"{path} has schema {schema!r}, expected {SCHEMA!r}"
        raise UsageError("no-report", message, remedy=remedy, paths=[path])
    missing = _missing(content)
    if missing:
        raise UsageError("no-report", f"{path} was changed: {missing}", remedy=remedy, paths=[path])
    return dict(content)


def _missing(content: dict[str, Any]) -> str:
    """Return what a report lacks of what a comparison reads; "" where it is whole."""
    if not isinstance(content.get("machine"), dict) or "model" not in content:
        return 'it has no "machine" or no "model"'
    if not isinstance(content.get("cells"), list):
        return 'its "cells" are no list'
    for number, row in enumerate(content["cells"]):
        names = ("id", "name", "against")
        whole = isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names)
        measures = row.get("measures") if whole else None
        if not isinstance(measures, dict):
            return f"cell {number} has no {', '.join(names)} or measures"
        for name, measure in measures.items():
            if not _is_measure(measure):
                return f"{name} of {row['id']} has no samples above zero"
    return ""


def _is_measure(measure: Any) -> bool:
    latency = measure.get("latency") if isinstance(measure, dict) else None
    if not isinstance(latency, dict):
        return False
    rounds = latency.get("values")
    if not isinstance(rounds, list) or not all(isinstance(one, list) and one for one in rounds):
        return False
    numbers = latency.get("rounds", list(range(len(rounds))))
    if not isinstance(numbers, list) or not all(type(one) is int and one >= 0 for one in numbers):
        return False
    if len({*numbers}) != len(rounds):
        return False
    values = [latency.get("p50"), *(value for one in rounds for value in one)]
    return bool(rounds) and all(type(one) in (int, float) and 0 < one < math.inf for one in values)


def parse_limit(text: str) -> float:
    """Read ``5%`` or ``0.05``."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 10:
        raise UsageError("bad-limit", f"--fail-over is {text!r}", remedy="write a share such as 5% or 0.05")
    return value


def parse_metrics(text: str | None) -> tuple[str, ...]:
    """Read ``prefill,per_token``; all of them by default."""
    if text is None:
        return METRICS
    names = tuple(part.strip() for part in text.split(","))
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        message = f"--metric names {unknown[0]!r}, which is none"
        raise UsageError("bad-metric", message, remedy=f"use a comma list of {', '.join(METRICS)}")
    return names


def compare(
    old: dict[str, Any],
    new: dict[str, Any],
    limit: float,
    *,
    other_machine: bool = False,
    metrics: tuple[str, ...] = METRICS,
) -> Comparison:
    """Compare reports. Another machine is refused unless ``other_machine``; then nothing fails, it is only shown.

    A measure counts as changed where `statistics.faster` says so, and fails where it is then slower by more than
    ``limit``. Cells are judged in units of stock's time in the same round, so that a machine which was slower that day
    changes nothing, and their noise is what the same comes to for stock again. Stock itself is judged by the clock.
    """
    differing = [key for key in _MACHINE if old["machine"].get(key) != new["machine"].get(key)]
    if differing and not other_machine:
        found = ", ".join(f"{key} {old['machine'].get(key)!r} and {new['machine'].get(key)!r}" for key in differing)
        raise UsageError(
            "other-machine",
            f"the two reports are of different machines: {found}",
            remedy="measure the baseline on this machine, or pass --other-machine to look without a gate",
        )
    if old["model"] != new["model"]:
        message = f"the two reports are of different models: {old['model']} and {new['model']}"
        raise UsageError("other-model", message, remedy="compare runs of one model and dtype")
    notes = [
        f"{key} was {old['machine'].get(key)}, is {new['machine'].get(key)}"
        for key in (*_MACHINE, *_VERSIONS)
        if old["machine"].get(key) != new["machine"].get(key)
    ]
    before = {row["id"]: row for row in old["cells"] if row["measures"]}
    after = {row["id"]: row for row in new["cells"] if row["measures"]}
    pairs = [
        (cell, name)
        for cell in before
        if cell in after
        for name in metrics
        if name in before[cell]["measures"] and name in after[cell]["measures"]
    ]
    changes = tuple(_change(pair, before, after, limit, len(pairs), gate=not differing) for pair in pairs)
    notes += [
        f"stock itself became {one.outcome} ({one.measure} of {one.cell}): the machine or its libraries changed"
        for one in changes
        if before[one.cell]["name"] == STOCK and one.outcome != "same"
    ]
    return Comparison(
        changes,
        tuple(cell for cell in before if cell not in after),
        tuple(cell for cell in after if cell not in before),
        tuple(notes),
        limit,
    )


Rows = dict[str, dict[str, Any]]


def _by_round(latency: dict[str, Any]) -> list[list[float]]:
    """Return the samples of every round; those of one that was lost are none, so that the others keep their places."""
    kept = dict(zip(latency.get("rounds", range(len(latency["values"]))), latency["values"], strict=True))
    return [kept.get(number, []) for number in range(max(kept) + 1)]


def _change(pair: tuple[str, str], before: Rows, after: Rows, limit: float, tests: int, *, gate: bool) -> Change:
    cell, name = pair
    row = after[cell]
    was, now = before[cell]["measures"][name]["latency"], row["measures"][name]["latency"]

    def rounds(rows: Rows, kind: str) -> list[list[float]]:
        found = rows.get(row["against"].replace(STOCK, kind, 1), {"measures": {}})["measures"].get(name)
        return _by_round(found["latency"]) if found else []

    def in_units(rows: Rows, values: list[list[float]]) -> list[list[float]]:
        return [[math.exp(one)] for one in log_ratios(values, rounds(rows, STOCK))]

    if row["name"] == STOCK:
        noise = [one for rows in (before, after) for one in log_ratios(rounds(rows, AGAIN), rounds(rows, STOCK))]
        found = faster(_by_round(now), _by_round(was), noise, tests=tests)
    else:
        noise = log_ratios(*(in_units(rows, rounds(rows, AGAIN)) for rows in (after, before)))
        found = faster(in_units(after, _by_round(now)), in_units(before, _by_round(was)), noise, tests=tests)
    ratio = found.ratio.value if found.ratio else now["p50"] / was["p50"]
    fails = gate and found.outcome == "slower" and ratio > 1 + limit
    return Change(cell, name, was["p50"], now["p50"], ratio, found.outcome, fails)
