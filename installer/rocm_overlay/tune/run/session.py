"""The loop over shapes: tune, time the default, refuse what is wrong or no faster, remember, go on."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...console import Step
from ...errors import UsageError, WriteError
from ...executor import Answer, Executor, answers
from ...fingerprint import Fingerprint, sha256
from ...journal import Reuse
from ..check import peak_flops
from ..device import Device
from ..lookup import default_libtype
from ..schema import COLUMNS
from ..shapes import Shape
from ..table import Row, read_table, render
from .journal import Journal, Outcome
from .programs import Programs

SCHEMA = "amd-overlay.tune.run/1"
VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Session:
    """One tuning run. ``margin`` is the share of the default's time a row must save to be kept; ``subject`` is what an
    outcome depends on beside the settings.
    """

    device: Device
    programs: Programs
    work: Path
    margin: float
    retries: int = 1
    subject: Fingerprint = field(default_factory=lambda: Fingerprint({}))

    @property
    def key(self) -> Fingerprint:
        """What must not change between a run and its resumption: the programs count by their text, too."""
        words = (*self.programs.tuner, *self.programs.verifier)
        texts = {word: sha256(Path(word)) for word in words if os.path.isfile(word)}
        return self.subject.planned({**self.settings(), "programs": texts})

    def settings(self) -> dict[str, object]:
        """What the user asked for."""
        return {
            "gpu": str(self.device),
            "tuner": list(self.programs.tuner),
            "verifier": list(self.programs.verifier),
            "extra": list(self.programs.extra),
            "err_ratio": self.programs.err_ratio,
            "margin": self.margin,
        }

    def run(
        self, shapes: Sequence[Shape], step: Step, executor: Executor | None = None
    ) -> tuple[tuple[Outcome, ...], Reuse | None]:
        """Tune every shape that the work folder's journal does not have yet, here or with ``executor``; return all
        outcomes in order, and what of them an earlier run finished.
        """
        journal = Journal(self.work / "session.jsonl", self.key.ingredients)
        reused = journal.reused(shapes)
        if executor is not None:
            self._spread(shapes, step, journal, executor)
        for shape in shapes:
            earlier = journal.done.get(shape)
            if earlier is not None:
                step(f"{shape.text()}: {_said(earlier)} (from an earlier run)")
                continue
            outcome = self._shape(shape)
            journal.add(outcome)
            step(f"{shape.text()}: {_said(outcome)}")
        return tuple(journal.done[shape] for shape in shapes), reused

    def _spread(self, shapes: Sequence[Shape], step: Step, journal: Journal, executor: Executor) -> None:
        """Tune what is missing on other devices; a shape whose worker died is left for the next run."""
        missing = [shape for shape in dict.fromkeys(shapes) if shape not in journal.done]
        for number, answer in answers(executor, [(tune_shape, self, shape) for shape in missing]):
            shape = missing[number]
            outcome = answer["outcome"] if answer["ok"] else Outcome(shape, "crashed", answer["message"])
            if answer["ok"]:
                journal.add(outcome)
            else:
                journal.done[shape] = outcome
            step(f"{shape.text()}: {_said(outcome)}")

    def _folder(self, shape: Shape) -> Path:
        name = hashlib.sha256(repr(tuple(shape)).encode()).hexdigest()[:8]
        folder = self.work / f"{shape.m}x{shape.n}x{shape.k}-{name}"
        folder.mkdir(exist_ok=True)
        return folder

    def _shape(self, shape: Shape) -> Outcome:
        folder = self._folder(shape)
        row, status, reason = self._tuned(shape, folder)
        if row is None:
            return Outcome(shape, status, reason)
        problem = self._doubt(row)
        if problem is not None:
            return Outcome(shape, problem[0], problem[1], row.us)
        default = default_libtype(self.device, shape.m, shape.n, shape.k, shape.dtype)
        baseline, ended = self.programs.tune(shape, folder, default)
        if baseline is None or not baseline.measured:
            return Outcome(shape, "no-baseline", f"{default} could not be timed: {ended.failure or 'no row'}", row.us)
        if row.libtype == default or row.us > baseline.us * (1 - self.margin):
            gain = 1 - row.us / baseline.us
            said = f"{row.libtype} saves {gain:.1%}, less than {self.margin:.1%}"
            return Outcome(shape, "no-gain", said, row.us, baseline.us)
        wrong = self.programs.verify(row, folder)
        if wrong:
            return Outcome(shape, "wrong", wrong, row.us, baseline.us)
        cells = dict(zip(COLUMNS, _cells(row), strict=True))
        return Outcome(shape, "kept", f"{row.libtype} saves {1 - row.us / baseline.us:.1%}", row.us, baseline.us, cells)

    def _tuned(self, shape: Shape, folder: Path) -> tuple[Row | None, str, str]:
        """Return the tuner's row, or the status and reason of its failure after all retries."""
        reason, status = "", "crashed"
        for _ in range(self.retries + 1):
            row, ended = self.programs.tune(shape, folder)
            if row is not None:
                return row, "", ""
            status = "timeout" if ended.timed_out else "crashed"
            reason = ended.failure or "the tuner wrote no row for it"
        return None, status, f"{reason}; log in {folder.name}/all.log"

    def _doubt(self, row: Row) -> tuple[str, str] | None:
        """Return (status, reason) for an answer that cannot be used, None when it may be good."""
        if row.key.device != self.device:
            return "wrong", f"the row is for {row.key.device}, not for {self.device}: the tuner ran on another GPU"
        if not row.measured:
            return "wrong", "the row has no time"
        if row.err_ratio is not None and row.err_ratio > self.programs.err_ratio:
            return "wrong", f"err_ratio {row.err_ratio} is above {self.programs.err_ratio}"
        peak = peak_flops(row.key)
        rate = 2 * row.key.m * row.key.n * row.key.k / (row.us * 1e-6)
        if peak is not None and rate > peak * 1.02:
            return "impossible", f"{row.us} us would be {rate / 1e12:.0f} TFLOPS, above this device's {peak / 1e12:.0f}"
        return None


def tune_shape(session: Session, shape: Shape) -> Answer:
    """The job of one shape, on the machine that got it: in the session's folder where that is shared, else beside it.

    Which GPU a worker may use is the cluster's word, everything else in the environment the user's.
    """
    programs = session.programs
    given = {name: os.environ[name] for name in VISIBLE if name in os.environ}
    mine = replace(session, programs=replace(programs, environment={**programs.environment, **given}))
    if session.work.is_dir():
        return {"ok": True, "outcome": mine._shape(shape)}
    with tempfile.TemporaryDirectory(prefix="overlay-tune-") as name:
        return {"ok": True, "outcome": replace(mine, work=Path(name))._shape(shape)}


def _cells(row: Row) -> list[str]:
    return next(csv.reader([render([row], COLUMNS).decode().splitlines()[1]]))


def _said(outcome: Outcome) -> str:
    times = ""
    if outcome.us is not None and outcome.default_us is not None:
        times = f" {outcome.us:g} us, default {outcome.default_us:g} us"
    return f"{outcome.status}{times} - {outcome.reason}"


def rows_of(outcomes: Sequence[Outcome], folder: Path) -> tuple[Row, ...]:
    """Return the kept rows, read back through the table reader so that what is written is what aiter can read."""
    kept = [outcome.row for outcome in outcomes if outcome.row is not None]
    table = folder / "kept.csv"
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    table.write_text(stream.getvalue(), "utf-8")
    read = read_table(table)
    if read.broken:
        raise UsageError(
            "bad-session", f"{table} holds rows that cannot be read", remedy="--fresh", findings=read.broken
        )
    return tuple(sorted(read.rows))


def summary(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return dict(sorted(Counter(outcome.status for outcome in outcomes).items()))


def open_folder(path: Path, fresh: bool = False) -> Path:
    """Make the folder of a session, empty of an earlier one with ``fresh``. Raises UsageError, WriteError."""
    journal = path / "session.jsonl"
    try:
        if fresh and path.exists():
            if not journal.is_file():
                message = f"{path} is not a session: it has no session.jsonl"
                raise UsageError(
                    "not-a-session", message, remedy="name the session's folder with --work", paths=(str(path),)
                )
            _forget(path)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot use {path}: {error.strerror or error}"
        raise WriteError("cannot-write", message, remedy="choose another --work folder") from error
    return path


def _forget(folder: Path) -> None:
    """Remove what a session makes, and nothing else: the folder may be one the user keeps other things in."""
    for name in ("session.jsonl", "kept.csv", "ab.csv", "ab.csv.meta.json"):
        (folder / name).unlink(missing_ok=True)
    for place in folder.iterdir():
        if place.is_dir() and not place.is_symlink() and re.fullmatch(r"\d+x\d+x\d+-[0-9a-f]{8}", place.name):
            shutil.rmtree(place)
