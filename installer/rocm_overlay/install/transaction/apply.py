"""The transaction: blobs, staging, journal, replacement, verification, receipt, in that order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from ...errors import BusyError, RolledBackError, UnrecoveredError
from . import blobs, journal
from .bytecode import purge
from .entry import Entry, Observed, sha256
from .journal import INSTALL, Change, Journal
from .lock import cannot_write
from .place import BLOBS, HISTORY, STATE, Place, new_id, temporary_name
from .recovery import BACK, Recovered, recover, set_aside, tidy, write_receipt
from .signals import Signals

HISTORY_LIMIT = 1 << 20
STEPS_PER_FILE = 2  # it is staged, and it is replaced


@dataclass(frozen=True)
class Step:
    """One file to replace: what it holds (None: it is missing), what it shall hold, and whether to keep a copy."""

    path: str
    before: Observed | None
    after: Entry
    data: bytes
    rescue: bool = False


@dataclass(frozen=True)
class Plan:
    """Everything one transaction does. ``keep`` lists further texts that recovery or a later revert needs."""

    kind: str
    version: str
    created: str
    steps: tuple[Step, ...]
    receipt_before: dict[str, object] | None
    receipt_after: dict[str, object] | None
    keep: tuple[bytes, ...] = ()
    id: str = field(default_factory=new_id)

    def journal(self, package: str) -> Journal:
        """Return the journal entry of this plan."""
        changes = tuple(
            Change(
                step.path,
                step.before.entry if step.before else None,
                step.after,
                temporary_name(step.path.rpartition("/")[2], self.id),
            )
            for step in self.steps
        )
        return Journal(
            self.id, self.kind, package, self.version, self.created, changes, self.receipt_before, self.receipt_after
        )


@dataclass(frozen=True)
class Done:
    """A finished transaction: its id, rescued texts, and remarks for the reader."""

    id: str
    rescued: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def preflight(place: Place, folders: set[str]) -> None:
    """Prove that every directory accepts a file before anything is changed. Raises WriteError."""
    probe = temporary_name("probe", new_id())
    for folder in sorted(folders):
        try:
            place.tree.probe(folder, probe)
        except OSError as error:
            raise cannot_write(place, place.tree.root / folder, error) from error


def _unwatched(text: str) -> None:
    """Nobody asked how far it is."""


def execute(
    place: Place,
    plan: Plan,
    signals: Signals,
    second_source: blobs.SecondSource = blobs.no_second_source,
    step: Callable[[str], None] = _unwatched,
) -> Done:
    """Carry out a plan. The caller holds the lock and has run recovery; ``step`` hears of each file twice.

    Raises WriteError or CancelledError with nothing changed, RolledBackError or CancelledError with everything put
    back, UnrecoveredError when even that failed; the next command tries again.
    """
    run = _Run(place, plan, signals, step)
    try:
        run.prepare()
        run.commit()
        run.replace()
    except Exception as error:  # noqa: BLE001 - every failure takes the same way back, and ends in a raise or a note
        done = _after_failure(run, error, second_source)
    else:
        done = Done(plan.id, tuple(run.rescued), tuple(run.notes))
    return Done(done.id, done.rescued, (*done.notes, *tidy(place, plan.receipt_after), *_write_history(place, plan)))


class _Run:
    def __init__(self, place: Place, plan: Plan, signals: Signals, step: Callable[[str], None]) -> None:
        self.place = place
        self.plan = plan
        self.signals = signals
        self.step = step
        self.journal = plan.journal(place.package)
        self.folders = sorted({place.folder(step.path) for step in plan.steps})
        self.notes: list[str] = []
        self.rescued: list[str] = []
        self.added: list[str] = []
        self.committed = False
        self.closing = False

    def prepare(self) -> None:
        """Write everything that may fail for lack of space or rights, before the first replacement."""
        self.place.prepare()
        for data in self._texts():
            if blobs.get(self.place, sha256(data)) is None:
                self.added.append(sha256(data))
                blobs.put(self.place, data)
        self.place.tree.sync(BLOBS)  # also for those that were there: who wrote them may have been stopped before it
        for step in self.plan.steps:
            if step.rescue and step.before is not None:
                self.rescued.append(set_aside(self.place, self.plan.id, step.path, step.before.data))
        for step, change in zip(self.plan.steps, self.journal.changes, strict=True):
            self.signals.check()
            target = self.place.target(step.path)
            self.notes += self.place.tree.stage(target, change.temporary, step.data, step.after)
            self.step(f"staged {step.path}")
        for folder in self.folders:
            self.place.tree.sync(folder)
        for change in self.journal.changes:
            self._still_before(change)
        self.signals.check()

    def commit(self) -> None:
        self.committed = True  # set first: a failure inside may come after the journal became visible
        try:
            journal.commit(self.place, self.journal)
        except FileExistsError as error:
            self.committed = False
            raise BusyError(
                "transaction-open",
                f"Another overlay transaction is open in {self.place.tree.root / STATE}.",
                remedy="wait for the other command to end, then run `overlay recover`",
                paths=[self.place.tree.root / STATE],
            ) from error

    def replace(self) -> None:
        for change in self.journal.changes:
            if self.plan.kind == INSTALL:  # a revert runs to its end: that is also what recovery would do
                self.signals.check()
            self._still_before(change)
            self.place.tree.publish(self.place.target(change.path), change.temporary)
            purge(self.place, change.path)
            self.step(f"replaced {change.path}")
        for folder in self.folders:
            self.place.tree.sync(folder)
        for change in self.journal.changes:
            found = self.place.tree.observe(self.place.target(change.path))
            if found is None or found.entry.sha256 != change.after.sha256:
                raise OSError(f"{self.place.target(change.path)} changed during the transaction")
        write_receipt(self.place, self.plan.receipt_after, self.plan.id)
        self.closing = True
        journal.clear(self.place)

    def abandon(self) -> None:
        """Remove what was staged, and the blobs that only this run needed: nothing has been replaced yet."""
        for folder in self.folders:
            self.place.tree.sweep(folder)
        for digest in self.added:
            blobs.drop(self.place, digest)

    def _texts(self) -> list[bytes]:
        """The texts that recovery needs: the way back of an install, the way forward of a revert."""
        if self.plan.kind == INSTALL:
            needed = [step.before.data for step in self.plan.steps if step.before is not None]
        else:
            needed = [step.data for step in self.plan.steps]
        return [*self.plan.keep, *needed]

    def _still_before(self, change: Change) -> None:
        found = self.place.tree.observe(self.place.target(change.path))
        if (found.entry.sha256 if found else None) != (change.before.sha256 if change.before else None):
            raise OSError(f"{self.place.target(change.path)} was changed by another process")


def _after_failure(run: _Run, error: Exception, second_source: blobs.SecondSource) -> Done:
    """Bring the tree to an end state after any failure and say which one it is."""
    recovered: Recovered | None = None
    if run.committed:
        try:
            recovered = recover(run.place, run.plan.version, second_source)
        except UnrecoveredError as worse:
            raise worse from error
    if recovered is None:
        if run.closing:  # the journal is gone, so all was done: only making its removal durable failed
            return Done(run.plan.id, tuple(run.rescued), (*run.notes, f"could not sync the closed journal: {error}"))
        _nothing_changed(run, error)
    elif recovered.outcome == BACK:
        _rolled_back(run, error)
    left = (*run.notes, *recovered.notes, f"finished by recovery after an error: {error}")
    return Done(run.plan.id, tuple(run.rescued), left)


def _nothing_changed(run: _Run, error: Exception) -> NoReturn:
    left = ""
    try:
        run.abandon()
    except OSError as cleanup:
        left = f" Temporary files are left, the next overlay command removes them ({cleanup})."
    if isinstance(error, OSError):
        refusal = cannot_write(run.place, run.place.tree.root, error)
        refusal.message += left
        raise refusal from error
    raise error


def _rolled_back(run: _Run, error: Exception) -> NoReturn:
    if not isinstance(error, OSError):
        raise error
    raise RolledBackError(
        "rolled-back",
        f"The {run.plan.kind} failed ({error}); every file is as it was before.",
        remedy="remove the cause, then run the command again",
        paths=[run.place.tree.root],
    ) from error


def _write_history(place: Place, plan: Plan) -> tuple[str, ...]:
    """Add a line to the history. Failing here costs that line, and is only reported."""
    line = {"id": plan.id, "kind": plan.kind, "time": plan.created, "version": plan.version}
    files = [step.path for step in plan.steps]
    try:
        old = place.tree.read(HISTORY)
        if old is None or len(old) < HISTORY_LIMIT:
            place.tree.ensure(HISTORY, place.owner)
            place.tree.append(HISTORY, json.dumps({**line, "files": files}, ensure_ascii=True).encode("ascii") + b"\n")
    except OSError as error:
        return (f"{place.tree.root / HISTORY} could not be written: {error}",)
    return ()
