"""Runs the plan: weights once, then round after round of every cell in a fresh process, each result kept at once.

Within a round the order of the cells is turned by one place per round, so that a machine that warms up or tires does
not favour a cell. What is done is in ``samples.jsonl``; the same plan in the same folder goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import journal
from ..child import Child
from ..console import Step
from ..errors import UsageError, WriteError
from ..fingerprint import Fingerprint
from ..verify.target import Interpreter, Source
from ..verify.workers import served
from ..verify.workers import stage as lay_out
from .matrix import Cell, profiles
from .process import Process
from .ranks import Alone, Crew, Team

WORKER = "rocm_overlay.bench.worker"
SAMPLES = "samples.jsonl"
SCHEMA = "amd-overlay.bench.samples/2"


@dataclass(frozen=True)
class Setup:
    """What is the same for every process of a benchmark. ``runs`` and ``warmup`` are per process; ``subject`` is what
    the samples depend on beside the plan.
    """

    interpreter: Interpreter
    model: Path
    has_weights: bool
    sources: list[Source]
    mode: str
    dtype: str
    seed: int
    rounds: int
    runs: int
    warmup: int
    timeout: float
    cells: list[Cell]
    subject: Fingerprint

    @property
    def ranks(self) -> int:
        """How many ranks each cell runs on."""
        return self.cells[0].work.ranks

    @property
    def key(self) -> Fingerprint:
        """What must not change between a run and its resumption."""
        numbers = {name: getattr(self, name) for name in ("mode", "dtype", "seed", "rounds", "runs", "warmup")}
        cells = {cell.id: cell.as_json() for cell in self.cells}
        return self.subject.planned({**numbers, "cells": cells, "profiles": profiles(self.cells)})


class Journal(journal.Journal):
    """The journal in the folder of a run: one line per finished process."""

    def __init__(self, folder: Path, setup: Setup, *, fresh: bool = False) -> None:
        self.folder = folder.resolve()  # workers run in another folder
        with self._said():
            super().__init__(self.folder / SAMPLES, SCHEMA, setup.key.ingredients, fresh=fresh)

    def done(self) -> dict[tuple[str, int], Process]:
        """Return the finished processes."""
        processes = [Process(**record, at=at) for record, at in zip(self.records, self.times, strict=True)]
        return {(process.cell, process.round): process for process in processes}

    def keep(self, process: Process) -> None:
        """Keep one result."""
        with self._said():
            self.append({name: value for name, value in vars(process).items() if name != "at"})
        process.at = self.times[-1]

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except journal.OtherRunError as error:
            message = f"{self.folder} holds samples of another run: {error}"
            remedy = "pass -o another folder, or --fresh to measure anew in this one"
            raise UsageError("other-plan", message, remedy=remedy, paths=[self.folder / SAMPLES]) from None
        except journal.NotAJournalError as error:
            message = f"{self.folder / SAMPLES} is not the samples of a run: {error}"
            remedy = "pass -o another folder, or remove this file"
            raise UsageError("other-plan", message, remedy=remedy, paths=[self.folder / SAMPLES]) from None
        except OSError as error:
            message = f"{self.folder} cannot be written: {error.strerror}"
            remedy = "pass -o a folder that can be"
            raise WriteError("no-output", message, remedy=remedy, paths=[self.folder]) from None


def order(cells: list[Cell], round: int) -> list[Cell]:
    """Return the cells of one round, turned by one place per round."""
    turn = round % len(cells)
    return cells[turn:] + cells[:turn]


def run_all(setup: Setup, samples: Journal, step: Step, team: Team | None = None) -> list[Process]:
    """Measure everything that is not done yet, with every member of the team, and return all processes."""
    team = team or Alone()
    done = samples.done()
    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as name:
        scratch = Path(name)
        missing = [
            (cell, round)
            for round in range(setup.rounds)
            for cell in order(setup.cells, round)
            if (cell.id, round) not in done
        ]
        if missing and not setup.has_weights:
            step("writing seeded weights")
        weights = stage(setup, scratch) if missing else setup.model
        for cell, round in missing:
            step(f"round {round + 1} of {setup.rounds}: {cell.id}")

            def measure(env: Mapping[str, str], cell: Cell = cell, round: int = round) -> Process:
                return _measure(setup, cell, round, weights, scratch, samples.folder, env)

            process = team.measure((cell.id, round), measure)
            samples.keep(process)
            done[cell.id, round] = process
    team.dismiss()
    return list(done.values())


def follow(setup: Setup, crew: Crew) -> None:
    """Measure what rank 0 says, on a rank that writes nothing."""
    cells = {cell.id: cell for cell in setup.cells}
    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as name:
        scratch = Path(name)
        weights = stage(setup, scratch)
        crew.follow(
            lambda order, env: _measure(setup, cells[order[0]], order[1], weights, scratch, scratch / "out", env)
        )


def ask_size(setup: Setup) -> dict[str, Any]:
    """Ask for parameters, bytes and free memory, before anything is loaded."""
    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as name:
        started = child(setup, "size", Path(name), {})
        found = next((event for event in started.events(timeout=setup.timeout) if event["event"] == "size"), None)
        if found is None:
            raise UsageError(
                "model-unreadable",
                f"transformers {setup.interpreter.transformers} cannot build {setup.model}:\n{started.log_tail()}",
                remedy="pass --model a folder that save_pretrained wrote, or a config.json",
                paths=[setup.model],
            )
        return found


def stage(setup: Setup, scratch: Path) -> Path:
    """Lay out both texts of the code, and the weights where the model has none; return the folder of the weights."""
    for build in ("stock", "overlay"):
        lay_out(scratch / build, setup.sources, build)
    if setup.has_weights:
        return setup.model
    weights = scratch / "weights"
    _materialise(setup, scratch, weights)
    return weights


def _materialise(setup: Setup, scratch: Path, weights: Path) -> None:
    started = child(setup, "materialise", scratch, {"weights": str(weights)})
    if not any(event["event"] == "materialised" for event in started.events(timeout=setup.timeout)):
        raise WriteError(
            "no-weights",
            f"seeded weights for {setup.model} could not be written into {weights}:\n{started.log_tail()}",
            remedy="set TMPDIR to a folder with enough space",
            paths=[weights],
        )


def _measure(
    setup: Setup, cell: Cell, round: int, weights: Path, scratch: Path, folder: Path, more: Mapping[str, str]
) -> Process:
    """Run one worker; its outputs go into ``folder``, ``more`` into its environment."""
    process = Process(cell.id, round)
    values = folder / "values" / f"{hashlib.sha256(cell.id.encode()).hexdigest()[:16]}-{round}.safetensors"
    values.parent.mkdir(parents=True, exist_ok=True)
    job = {"cell": cell.as_json(), "weights": str(weights), "values": str(values)}
    started = child(setup, "cell", scratch, job, build=cell.build)
    env = {**cell.env, **cell.toggles, **more}
    for event in started.events(env, timeout=setup.timeout):
        process.take(event)
    if started.timed_out:
        process.status, process.message = "timeout", f"it was ended after {setup.timeout:g} s"
    elif process.status == "crashed":
        tail = started.log_tail()
        last = tail.splitlines()[-1] if tail else "it wrote nothing"
        process.message = f"the process ended with status {started.status}: {last}\n{tail}"
    elif process.status == "ok" and cell.build == "overlay" and not process.overlay:
        process.status, process.message = "crashed", "the process ran stock code where the overlay was asked for"
    return process


def child(setup: Setup, task: str, scratch: Path, more: dict[str, Any], build: str | None = None) -> Child:
    """Prepare a worker; with ``build`` it is served that build of the code, else whatever is installed."""
    job = {
        "task": task,
        "model": str(setup.model),
        "mode": setup.mode,
        "dtype": setup.dtype,
        "seed": setup.seed,
        "warmup": setup.warmup,
        "runs": setup.runs,
        **served(setup.interpreter, scratch, build, setup.sources),
        **more,
    }
    return Child(setup.interpreter.executable, WORKER, job, scratch)
