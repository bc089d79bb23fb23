"""What a run has given so far: yield, errors by category, success by operator, tokens and cost, rate."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Stats:
    """Counts over the slots and attempts of this run and, where it was resumed, of the runs before.

    ``tried`` and ``passed`` count attempts in which an operator was asked for, and those of them that gave a program
    with it; ``operators`` and ``extra`` what the accepted programs really call, asked for or not.
    """

    total: int
    valid: int = 0
    failed: int = 0
    resumed: int = 0
    attempts: int = 0
    categories: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    extra: Counter[str] = field(default_factory=Counter)
    torch_calls: set[str] = field(default_factory=set)
    bridges: int = 0
    usage: Counter[str] = field(default_factory=Counter)
    cost: float = 0.0
    start: float = field(default_factory=time.monotonic)

    def count(self, record: dict[str, Any], *, resumed: bool = False) -> None:
        """Take in a finished slot."""
        good = record["status"] == "valid"
        self.valid += good
        self.failed += not good
        self.resumed += resumed
        for attempt in record["attempts"]:
            self.attempts += 1
            names = set(attempt["requested"])
            self.tried.update(names)
            self.missing.update(attempt["missing"])
            if attempt["category"]:
                self.categories[attempt["category"]] += 1
            else:
                self.passed.update(names)
            self.usage.update(
                {"input": attempt["tokens"][0], "output": attempt["tokens"][1], "requests": attempt["requests"]}
            )
            self.cost += attempt["cost"]
        if good:
            self.operators.update(record["operators"])
            self.extra.update(record["extra"])
            self.torch_calls.update(record["calls"])
            self.bridges += record["bridges"]

    @property
    def done(self) -> int:
        """Slots that are finished."""
        return self.valid + self.failed

    @property
    def seconds(self) -> float:
        """Seconds of this run."""
        return time.monotonic() - self.start

    @property
    def rate(self) -> float:
        """Slots finished per second in this run."""
        return (self.done - self.resumed) / max(self.seconds, 1e-9)

    @property
    def left(self) -> float:
        """Seconds that the rest will take at this rate; infinite as long as nothing is finished."""
        return (self.total - self.done) / self.rate if self.rate else float("inf")

    def line(self) -> str:
        """The state in one line."""
        share = self.valid / max(self.done, 1)
        errors = ", ".join(f"{name} {count}" for name, count in self.categories.most_common(4))
        text = f"{self.done}/{self.total} slots, {self.valid} valid ({share:.1%}), {self.attempts} attempts"
        text += f", {self.rate:.2f}/s, {len(self.operators)} operators"
        if 0 < self.left < float("inf"):
            text += f", {self.left:.0f} s left"
        worst = ", ".join(f"{name} {good}/{tried}" for name, good, tried in self.worst()[:3])
        return text + (f"; errors: {errors}" if errors else "") + (f"; worst: {worst}" if worst else "")

    def worst(self, least: int = 3) -> list[tuple[str, int, int]]:
        """(operator, passed, tried) of operators that were tried often enough and failed at least once, worst first."""
        rows = [(name, self.passed[name], tried) for name, tried in self.tried.items() if tried >= least]
        return sorted((row for row in rows if row[1] < row[2]), key=lambda row: (row[1] / row[2], row[0]))

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "total": self.total,
            "valid": self.valid,
            "failed": self.failed,
            "resumed": self.resumed,
            "attempts": self.attempts,
            "yield_per_slot": round(self.valid / max(self.done, 1), 4),
            "yield_per_attempt": round(self.valid / max(self.attempts, 1), 4),
            "categories": dict(sorted(self.categories.items())),
            "distinct_operators": len(self.operators),
            "distinct_torch_calls": len(self.torch_calls),
            "operators": {name: [self.passed[name], self.tried[name]] for name in sorted(self.tried)},
            "missing": dict(sorted(self.missing.items())),
            "in_programs": dict(sorted(self.operators.items())),
            "extra": dict(sorted(self.extra.items())),
            "bridges": self.bridges,
            "tokens": {"input": self.usage["input"], "output": self.usage["output"]},
            "requests": self.usage["requests"],
            "cost": round(self.cost, 6),
            "seconds": round(self.seconds, 2),
            "per_second": round(self.rate, 3),
        }

    def text(self) -> Iterable[str]:
        """The summary for people."""
        yield self.line()
        if self.resumed:
            yield f"{self.resumed} slots were finished by earlier runs"
        for name, count in self.categories.most_common():
            yield f"  {name}: {count} attempts"
        for name, good, tried in self.worst()[:10]:
            lacked = f", {self.missing[name]} programs without it" if self.missing[name] else ""
            yield f"  operator {name}: {good} of {tried} passed{lacked}"
        if self.usage["requests"]:
            yield (
                f"  {self.usage['requests']} requests, {self.usage['input']} + {self.usage['output']} tokens, "
                f"cost {self.cost:.4f}"
            )
