"""Starts worker processes and turns their events into results; a worker that dies is a result too."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..child import Child, beside
from ..console import Steps
from ..errors import UsageError, WriteError
from ..fingerprint import Fingerprint
from ..journal import Reuse
from .plan import ANY, TIERS, Run
from .switches import functions_of
from .target import Interpreter, Source

# Tiers that need a GPU or a library: where they cannot run, that is told with the reason and is no failure.
OPTIONAL_TIERS = ("triton", "aiter")
# Names in the report for sites that choose between a faster form and the stock modules, whatever the tier.
SITES = ("fused", "routed")
STOCK = "stock"


@dataclass
class RunResult:
    """What one run gave: a status, its cases, what ran and what was declined."""

    run: Run
    status: str = "crashed"  # until its last event arrives
    cases: list[dict[str, Any]] = field(default_factory=list)
    ops: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    message: str = ""
    culprit: dict[str, Any] | None = None  # the switch, op and layer that a bisect named

    @property
    def deviating(self) -> list[dict[str, Any]]:
        """The cases that are not within tolerance."""
        return [case for case in self.cases if not case["ok"]]

    @property
    def ran(self) -> dict[str, dict[str, int]]:
        """Calls by op and tier, without those that were left to the stock modules."""
        found = {
            op["op"]: {row["tier"]: row["calls"] for row in op["tiers"] if row["calls"] and row["tier"] != STOCK}
            for op in self.ops
        }
        return {op: tiers for op, tiers in found.items() if tiers}

    @property
    def declined(self) -> list[dict[str, Any]]:
        """Why the run's own tier did not run an op, or nothing of ours did, from `amd_ops.report()`."""
        return [
            {"op": op["op"], "reason": entry["reason"], "calls": entry["calls"]}
            for op in self.ops
            for row in op["tiers"]
            if row["tier"] in (self.run.tier, *SITES)
            for entry in row["declined"]
        ]

    def finish(self, event: dict[str, Any]) -> None:
        """Take a run's last event and settle the status."""
        self.seconds, self.ops = event["seconds"], event["ops"]
        on_tier = any(self.run.tier in tiers for tiers in self.ran.values())
        if self.deviating:
            self.status = "deviates"
        elif self.run.tier in OPTIONAL_TIERS and not on_tier:
            self.status = "declined"
        elif self.run.tier != "off" and not self.ran:
            self.status = "no-effect"
        else:
            self.status = "ok"

    def as_json(self) -> dict[str, Any]:
        """Return plain values for the report."""
        return {
            **self.run.as_json(),
            "status": self.status,
            "cases": self.cases,
            "ran": self.ran,
            "declined": self.declined,
            "seconds": self.seconds,
            "message": self.message,
            "culprit": self.culprit,
        }


@dataclass
class Results:
    """Everything the workers told."""

    device: str = ""
    loaded: dict[str, Any] = field(default_factory=dict)
    runs: list[RunResult] = field(default_factory=list)
    not_compared: list[dict[str, Any]] = field(default_factory=list)  # cases that stock itself cannot run
    compared: int = 0
    nan_weights: list[str] = field(default_factory=list)
    reused: Reuse | None = None  # jobs that an earlier run finished


@dataclass(frozen=True)
class Setup:
    """What is the same for every worker of a verification."""

    interpreter: Interpreter
    model: Path
    sources: list[Source]
    dtype: str
    seed: int
    max_new_tokens: int
    cases: tuple[str, ...]
    implementations: tuple[str, ...]
    seeded: bool = False  # ``model`` is a configuration alone: weights come from the seed
    save: Path | None = None  # where stock's outputs are kept for another machine
    compare: Path | None = None  # outputs of another machine, in place of stock here
    bisect: bool = True
    subject: Fingerprint | None = None  # what results depend on beside the plan; None where none are kept


def run_all(setup: Setup, runs: list[Run], step: Steps) -> Results:
    """Record stock once, then compare every run, in one process per build and tier; ``step`` hears of progress.

    It also hears how much there is to do: cases that fit the model, and none of a tier that turns out not to run here.
    """
    results = Results()
    with tempfile.TemporaryDirectory(prefix="overlay-verify-") as name:
        scratch = Path(name)
        for build in ("stock", "overlay"):
            stage(scratch / build, setup.sources, build)
        _record(setup, scratch, results, step, len(runs))
        for group in groups(runs):
            _compare(setup, scratch, group, results, step, len(runs) - len(results.runs))
    return results


def groups(runs: list[Run]) -> list[list[Run]]:
    """Group runs by tier: one process each. Off shares the first, where nothing has been fused before it."""
    groups = [[run for run in runs if run.tier == tier] for tier in (*TIERS, ANY)]
    groups = [group for group in groups if group]
    off = [run for run in runs if run.tier == "off"]
    return [off + groups[0], *groups[1:]] if groups else [off]


def stage(folder: Path, sources: list[Source], build: str) -> None:
    """Lay out one build of the modeling files."""
    for source in sources:
        path = folder / source.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.stock if build == "stock" else source.overlay)


def served(interpreter: Interpreter, scratch: Path, build: str | None, sources: list[Source]) -> dict[str, Any]:
    """The part of a worker's job that says which code it runs: a staged build (None: what is installed), and where
    `amd_ops` is where that interpreter has none.
    """
    return {
        "sources": {source.module: str(scratch / build / source.path) for source in sources} if build else {},
        "amd_ops_path": None if interpreter.amd_ops else str(beside("amd_ops", scratch / "fallback")),
    }


def _record(setup: Setup, scratch: Path, results: Results, step: Steps, runs: int) -> None:
    worker = _worker(setup, scratch, "stock", [])
    for event in worker.events():
        if event["event"] == "load-failed":
            raise UsageError(
                "model-unreadable",
                f"transformers {setup.interpreter.transformers} cannot load {setup.model}: {event['message']}",
                remedy="check that the folder holds a model of a kind that verify knows, and its weights",
                paths=[setup.model],
            )
        if event["event"] == "reference-refused":
            remedy = "pass a file that `overlay verify --save` wrote of this model with these options"
            raise UsageError("no-reference", event["message"], remedy=remedy, paths=[str(setup.compare)])
        if event["event"] == "save-failed":
            raise WriteError("no-output", event["message"], remedy="make room, or name another file with --save")
        if event["event"] == "loaded":
            results.device, results.nan_weights = event["device"], event["nan_weights"]
            step.left(event["cases"] * (1 + runs))
        if event["event"] == "recorded":
            step(f"stock: {event['implementation']} {event['case']}")
            if event["error"]:
                results.not_compared.append({name: event[name] for name in ("implementation", "case", "error")})
            else:
                results.compared += 1
    if worker.status or not results.compared:
        raise RuntimeError(f"the stock model could not be run:\n{worker.log_tail()}")


def _compare(setup: Setup, scratch: Path, runs: list[Run], results: Results, step: Steps, left: int) -> None:
    found = {run.id: RunResult(run) for run in runs}
    results.runs.extend(found.values())
    step.left(left * results.compared)
    worker = _worker(setup, scratch, "overlay", runs)
    for event in worker.events():
        if event["event"] == "toggle-refused":
            raise UsageError("bad-toggles", event["message"], remedy="correct the value given to --toggles")
        if event["event"] == "loaded":
            results.loaded = event
        if event["event"] == "load-failed":
            for result in found.values():
                result.message = f"the overlaid model could not be loaded: {event['message']}"
        if event["event"] == "case":
            step(f"{event['run']}: {event['implementation']} {event['case']}")
            found[event["run"]].cases.append(
                {key: value for key, value in event.items() if key not in ("event", "run")}
            )
        if event["event"] == "culprit":
            found[event["run"]].culprit = {key: event[key] for key in event if key not in ("event", "run")}
        if event["event"] == "run-done":
            found[event["run"]].finish(event)
            left -= 1
            step.left(left * results.compared)
    for result in found.values():
        if result.status == "crashed" and not result.message:
            result.message = (
                f"the process ended with status {worker.status} before this run was done:\n{worker.log_tail()}"
            )


def _worker(setup: Setup, scratch: Path, build: str, runs: list[Run]) -> Child:
    job = {
        "model": str(setup.model),
        **served(setup.interpreter, scratch, build, setup.sources),
        "record": build == "stock",
        "references": str(scratch / "references"),
        "runs": [run.as_json() for run in runs],
        "cases": setup.cases,
        "implementations": setup.implementations,
        "optional_tiers": OPTIONAL_TIERS,
        "dtype": setup.dtype,
        "seed": setup.seed,
        "max_new_tokens": setup.max_new_tokens,
        "seeded": setup.seeded,
        "save": str(setup.save.resolve()) if setup.save else None,
        "compare": str(setup.compare.resolve()) if setup.compare else None,
        "bisect": setup.bisect,
        "functions": functions_of(source.overlay for source in setup.sources),
    }
    return Child(setup.interpreter.executable, "rocm_overlay.verify.worker", job, scratch)
