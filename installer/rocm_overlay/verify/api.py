"""The same proofs for programs: compare a model, qualify it, warm it up. Errors are `OverlayError`s with a remedy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console import Steps
from . import command, report
from . import options as verify_options
from .options import QualifyOptions as Options
from .qualify.command import qualify as _qualify
from .qualify.command import warm
from .workers import run_all

__all__ = ["Options", "Outcome", "qualify", "verify", "warmup"]


@dataclass(frozen=True)
class Outcome:
    """The report of a verification: the object that ``overlay verify --json`` prints."""

    content: dict[str, Any]

    @property
    def ok(self) -> bool:
        """True when every run that could be made is within tolerance."""
        return bool(self.content["ok"])

    @property
    def problems(self) -> list[str]:
        """One sentence per run that deviates or crashed, with the op and layer that the bisect named."""
        found = []
        for run in self.content["runs"]:
            if run["status"] not in ("deviates", "crashed"):
                continue
            cases = ", ".join(f"{case['implementation']} {case['case']}" for case in run["cases"] if not case["ok"])
            culprit = f" because of {report.culprit_text(run['culprit'])}" if run["culprit"] else ""
            found.append(f"{run['id']} {run['status']}: {cases or run['message']}{culprit}")
        return found


def verify(
    model: Path | str,
    *,
    python: str | None = None,
    tiers: str | None = None,
    toggles: Sequence[str] = (),
    dtype: str = "float32",
    cases: str | None = None,
    max_new_tokens: int = 8,
    save: Path | None = None,
    compare: Path | None = None,
) -> Outcome:
    """Compare stock and overlaid code as ``overlay verify`` does. Raises OverlayError where that cannot be done."""
    start = time.perf_counter()
    asked = verify_options.Options(
        str(model), python, tiers, list(toggles), cases, max_new_tokens=max_new_tokens, save=save, compare=compare
    )
    setup, runs = command.prepare(asked, dtype)
    results = run_all(setup, runs, Steps())
    return Outcome(report.as_json(setup, results, time.perf_counter() - start))


def qualify(options: Options, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Qualify a model and return the profile. ``say`` hears of progress. Raises OverlayError."""
    return _qualify(options, say)


def warmup(profile: Path, python: str | None = None) -> dict[str, Any]:
    """Make every call of a profile once and return what the first ones took. Raises OverlayError."""
    return warm(profile, python)
