"""``overlay verify --hf-tests SDIST``: stock, then the overlay under each toggle set; what stock passes must pass."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...child import beside, environment
from ...console import print_json, say, show, wants_json
from ...errors import TargetError, UsageError
from ...install import catalog, lookup
from .. import plan, target
from ..options import Options
from ..workers import stage
from . import layout

SCHEMA = "amd-overlay.hf-tests/1"
JOB = "OVERLAY_HF_JOB"
PLUGIN = "rocm_overlay.verify.hf_tests.child_plugin"
_RERUNS = 2  # some of transformers' tests draw unseeded numbers


@dataclass
class Outcome:
    """One run of the tests: which passed, which failed and why, what of ours ran."""

    label: str
    passed: set[str]
    failed: dict[str, str]
    skipped: int
    ran: dict[str, int]
    lost: dict[str, str] = field(default_factory=dict)  # passed on stock, and not here
    again: list[str] = field(default_factory=list)  # passed when run again

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "run": self.label, "passed": len(self.passed), "failed": self.failed, "skipped": self.skipped,
            "ran": self.ran, "lost": self.lost, "passed_when_run_again": self.again,
        }  # fmt: skip


def run(sdist: Path, options: Options) -> int:
    """Compare pass sets and print them. 0: nothing that stock passes is lost; 1: something is; else as verify."""
    outcomes = compare(sdist, options.models, options.toggles or (), options.python, say)
    code = 1 if any(outcome.lost for outcome in outcomes) else 0
    if wants_json():
        runs = [outcome.as_json() for outcome in outcomes]
        return print_json("verify", {"schema": SCHEMA, "runs": runs}, code=code)
    for outcome in outcomes:
        counts = f"{len(outcome.passed)} passed, {len(outcome.failed)} failed, {outcome.skipped} skipped"
        again = f", {len(outcome.again)} only when run again" if outcome.again else ""
        show(f"{outcome.label:<28} {counts}{again}; ops of ours: {', '.join(outcome.ran) or 'none'}")
        for test, why in outcome.lost.items():
            show(f"  lost: {test}: {why}")
    return code


def compare(
    sdist: Path, models: str | None, toggles: Sequence[str], python: str | None, say: Callable[[str], None],
    named: str = "",
) -> list[Outcome]:  # fmt: skip
    """Return stock's outcome, then that of every toggle set (off and all by default).

    ``named`` is an expression of pytest's ``-k`` that chooses among the tests; all of them by default.
    """
    release = layout.version_of(sdist)
    interpreter = target.probe(python)
    if interpreter.transformers != release:
        message = f"the sdist is {release}, {interpreter.executable} has transformers {interpreter.transformers}"
        raise UsageError("another-release", message, remedy=f"download the sdist of {interpreter.transformers}")
    chosen = _models(models, release, interpreter)
    sources = target.find_sources(interpreter, *chosen)
    sets = list(toggles) or ["off", "all"]
    parsed = {text: plan.parse_toggles(text) for text in sets}
    with tempfile.TemporaryDirectory(prefix="overlay-hf-") as name:
        scratch = Path(name)
        tree = layout.lay_out(sdist, chosen, scratch / "tree")
        for build in ("stock", "overlay"):
            stage(scratch / build, sources, build)
        runner = _Runner(interpreter, scratch, tree, sources, named)
        say(f"transformers {release}, {', '.join(chosen)}: stock")
        stock = runner.run("stock", "stock", {})
        if not stock.passed:
            raise UsageError("no-tests", f"stock passes no test: {runner.log_tail()}", remedy="see the message")
        outcomes = [stock]
        for text, values in parsed.items():
            say(f"overlay, {text}")
            outcomes.append(_against(stock, runner, text, values))
    return outcomes


def _against(stock: Outcome, runner: _Runner, text: str, values: dict[str, str]) -> Outcome:
    found = runner.run(f"overlay, {text}", "overlay", values)
    lost = sorted(stock.passed - found.passed)
    for _ in range(_RERUNS):
        if lost:
            again = runner.run("again", "overlay", values, lost)
            found.again += sorted(again.passed & set(lost))
            lost = sorted(set(lost) - again.passed)
            found.failed.update(again.failed)
    found.lost = {test: found.failed.get(test, "did not run") for test in lost}
    return found


def _models(text: str | None, release: str, interpreter: target.Interpreter) -> list[str]:
    """Check the names against the bundle's models of the release and those that are installed, of any origin."""
    environment = lookup.environment_of(interpreter.package, catalog.BUNDLE)
    known = sorted({
        *(entry.model for line in catalog.lines() for entry in catalog.load(line).files if release in entry.releases),
        *(environment.model_of(path) for path in environment.paths()),
    })  # fmt: skip
    if text is None:
        return known
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        message = f"--models {text!r}: there is no overlay of {release} for {', '.join(unknown) or 'nothing'}"
        raise UsageError("bad-models", message, remedy=f"use some of {', '.join(known)}")
    return chosen


class _Runner:
    def __init__(
        self, interpreter: target.Interpreter, scratch: Path, tree: Path, sources: list[target.Source], named: str
    ) -> None:
        self.interpreter, self.scratch, self.tree, self.sources = interpreter, scratch, tree, sources
        self.named = named
        self.log = scratch / "log"

    def run(self, label: str, build: str, toggles: dict[str, str], only: Sequence[str] = ()) -> Outcome:
        """Run the tests in a process of its own. Raises TargetError when pytest itself could not run."""
        outcomes, job = self.scratch / "outcomes.json", self.scratch / "job.json"
        outcomes.unlink(missing_ok=True)
        served = {source.module: str(self.scratch / build / source.path) for source in self.sources}
        job.write_text(json.dumps({"sources": served, "outcomes": str(outcomes)}))
        env = {**environment(self.scratch), **toggles, JOB: str(job), "OMP_NUM_THREADS": "1"}
        if toggles:
            env["AMD_OPS_TIERS"] = plan.WITH_FALLBACK[plan.ANY]
        if self.interpreter.amd_ops is None:
            folder = str(beside("amd_ops", self.scratch / "fallback"))
            env["PYTHONPATH"] = os.pathsep.join((env["PYTHONPATH"], folder))
        command = [self.interpreter.executable, "-m", "pytest", "-q", "-p", PLUGIN, "-p", "no:cacheprovider",
                   "-W", "ignore", "-k", self.named, *(only or ["tests/models/overlay"])]  # fmt: skip
        with self.log.open("wb") as log:
            subprocess.run(command, cwd=self.tree, env=env, stdout=log, stderr=log, check=False)
        if not outcomes.is_file():
            remedy = f"install pytest and parameterized for {self.interpreter.executable}"
            raise TargetError("no-pytest", f"the tests could not be run: {self.log_tail()}", remedy=remedy)
        found = json.loads(outcomes.read_bytes())
        by = {kind: {test for test, outcome in found["outcomes"].items() if outcome == kind}
              for kind in ("passed", "failed", "skipped")}  # fmt: skip
        return Outcome(label, by["passed"], {test: found["messages"].get(test, "") for test in by["failed"]},
                       len(by["skipped"]), {op: calls for op, calls in found["ran"].items() if calls})  # fmt: skip

    def log_tail(self) -> str:
        """Return the last lines of the run's output."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:])
