"""Two reports side by side: `bench compare` and the `--baseline` gate."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..install.transaction.errors import UsageError
from .report import MEASURES, SCHEMA

SCHEMA_COMPARE = "amd-overlay.bench-compare/1"
_MACHINE = ("device", "device_name")
_VERSIONS = ("python", "torch", "transformers", "overlay", "platform")
METRICS = tuple(dict.fromkeys(name for measures in MEASURES.values() for name, _ in measures))


@dataclass(frozen=True)
class Change:
    """One measure of one cell in both reports. ``ratio`` is new over old; ``outcome`` is faster, slower or same."""

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
    except (OSError, ValueError) as error:
        raise UsageError("no-report", f"{path} cannot be read: {error}", remedy=remedy, paths=[path]) from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        message = f"{path} has schema {schema!r}, expected {SCHEMA!r}"
        raise UsageError("no-report", message, remedy=remedy, paths=[path])
    return dict(content)


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

    A measure counts as changed where the intervals of the medians do not overlap, and fails where it is then slower by
    more than ``limit``.
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
    changes = tuple(
        _change(cell, name, before[cell], after[cell], limit, gate=not differing)
        for cell in before
        if cell in after
        for name in metrics
        if name in before[cell]["measures"] and name in after[cell]["measures"]
    )
    return Comparison(
        changes,
        tuple(cell for cell in before if cell not in after),
        tuple(cell for cell in after if cell not in before),
        tuple(notes),
        limit,
    )


def _change(cell: str, name: str, old: dict[str, Any], new: dict[str, Any], limit: float, *, gate: bool) -> Change:
    was, now = old["measures"][name]["latency"], new["measures"][name]["latency"]
    ratio = now["p50"] / was["p50"]
    overlap = now["low"] <= was["high"] and was["low"] <= now["high"]
    outcome = "same" if overlap else "slower" if ratio > 1 else "faster"
    return Change(
        cell, name, was["p50"], now["p50"], ratio, outcome, gate and outcome == "slower" and ratio > 1 + limit
    )
