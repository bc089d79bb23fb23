"""Turns what is on disk, the receipt and the bundle into a plan. Reads only; every refusal is made here."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import rocm_overlay

from ..errors import UsageError, nearest
from . import refusals
from .catalog import FileEntry, Manifest
from .record import Record
from .state import ADOPTABLE, EDITED, Environment, Facts
from .target import Target
from .transaction import journal
from .transaction.apply import Plan, Step
from .transaction.bytecode import compiled
from .transaction.decode import Reader
from .transaction.entry import FILE, Entry, Observed
from .transaction.place import Place, now_ns
from .transaction.receipt import ADOPTED, BUNDLE, OWN, Receipt, ReceiptFile, ReceiptTarget
from .transaction.states import BACK, FileState


@dataclass(frozen=True)
class Changes:
    """A plan (None: nothing to do) and what it means per file, by path."""

    plan: Plan | None
    installed: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    """Files that are neither stock nor ours, and stay as they are."""
    adopted: tuple[str, ...] = ()
    """Files of ``installed`` and ``updated`` whose base is a text of the user's: revert returns that one."""
    notes: tuple[str, ...] = ()
    """What the reader should know about single files."""


def select_models(known: Sequence[str], line: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """Check model names; None means all. Raises UsageError that names the nearest known one."""
    if names is None:
        return tuple(known)
    chosen = list(dict.fromkeys(names))
    if not chosen:
        raise UsageError(
            "no-model",
            f"--models names no model, expected some of {line}: {', '.join(known)}",
            remedy=f"run `overlay install --transformers {line} --models {known[0]}`, "
            "or leave --models out for all of them",
        )
    unknown = [name for name in chosen if name not in known]
    if unknown:
        near = nearest(unknown[0], known)
        hint = f"; did you mean {near}?" if near else ""
        raise UsageError(
            "unknown-model",
            f"--models: {', '.join(unknown)} is not among the models of {line}: {', '.join(known)}{hint}",
            remedy=f"run `overlay install --transformers {line} --models {near or known[0]}`, "
            "or leave --models out for all of them",
        )
    return tuple(sorted(chosen))


def plan_install(
    environment: Environment, manifest: Manifest, models: Sequence[str] | None, *, adopt: bool = False
) -> Changes:
    """Plan the full desired set: these models (None: all of the manifest) overlaid, everything else stock.

    Raises ForeignError for edited files, unless ``adopt``: then an overlay is made from the text that is there, which
    is what revert returns. Raises UnsupportedError for stock texts that no overlay was made for.
    """
    run = _Install(environment, manifest, adopt)
    chosen = select_models(manifest.models(), manifest.line, models)
    for path, entries in manifest.by_path().items():
        if entries[0].model in chosen:
            run.want(path, entries, named=models is not None)
    for path, file in run.old.items():
        if path not in run.seen:
            if models is None and file.origin in (ADOPTED, OWN):
                run.keep(file)
            else:
                run.drop(file)
    run.make()
    run.refuse()
    return run.changes()


class _Install:
    def __init__(self, environment: Environment, manifest: Manifest, adopt: bool) -> None:
        self.e = environment
        self.manifest = manifest
        self.adopt = adopt
        self.old = environment.receipt.by_path() if environment.receipt else {}
        self.seen: set[str] = set()
        self.steps: list[Step] = []
        self.files: list[ReceiptFile] = []
        self.texts: list[bytes] = []
        self.done: dict[str, list[str]] = {
            "installed": [],
            "updated": [],
            "removed": [],
            "unchanged": [],
            "adopted": [],
        }
        self.notes: list[str] = []
        self.to_make: dict[str, tuple[Observed, Entry, bytes, tuple[str, ...]]] = {}
        self.foreign: list[tuple[str, str]] = []
        self.unseen: list[tuple[str, str]] = []
        self.absent: list[str] = []
        self.damaged: list[tuple[str, str]] = []

    def want(self, path: str, entries: tuple[FileEntry, ...], *, named: bool) -> None:
        """Decide for one path that shall hold an overlay."""
        self.seen.add(path)
        facts = self.e.facts(path)
        state, found, old = facts.state, facts.observed, self.old.get(path)
        if state is FileState.ABSENT:
            if named:
                self.absent.append(path)
            return
        if state is FileState.MISSING or found is None:
            self.damaged.append((path, "is missing"))
            return
        fitting = next((one for one in entries if one.fits(found.entry.sha256)), None)
        if state is FileState.OVERLAY and old is not None:
            self._keep_or_update(found, old, entries)
        elif state is FileState.OVERLAY:
            self._recognise(found, facts, entries)
        elif state in EDITED:
            self._edited(found, facts, fitting)
        elif fitting is not None:
            self._overlay(found, fitting, found.entry, compiled(self.e.place, path))
        else:
            self.unseen.append((path, found.entry.sha256))

    def keep(self, file: ReceiptFile) -> None:
        """Leave a file of the user's as it is: nobody named it, and it is in the receipt.

        Where a reinstall has replaced it, only the receipt forgets it; what was adopted is set aside.
        """
        state = self.e.facts(file.path).state
        if state is FileState.OVERLAY:
            self.files.append(file)
            self.done["unchanged"].append(file.path)
        elif state not in BACK:
            self.drop(file)

    def drop(self, file: ReceiptFile) -> None:
        """Decide for one path that was overlaid and is not wanted any more."""
        facts = self.e.facts(file.path)
        if facts.observed is None:
            self.damaged.append((file.path, "is missing"))
        elif facts.state not in (FileState.OVERLAY, *BACK):
            self._foreign(facts)
        elif facts.digest != file.stock.sha256:
            text = self.e.base_text(file.path, file.stock.sha256)
            self.steps.append(Step(file.path, facts.observed, file.stock, text))
            self.done["removed"].append(file.path)

    def make(self) -> None:
        """Make the overlays of adopted texts; what no recipe fits is refused later."""
        if not self.to_make:
            return
        from . import made

        sizes = {path: {one.stock_size for one in self.e.facts(path).entries} for path in self.to_make}
        texts = {path: base for path, (_, _, base, _) in self.to_make.items()}
        result = made.make(texts, version=self.e.target.version or "", sizes=sizes)
        for entry in result.entries:
            found, stock, _, had_pyc = self.to_make[entry.path]
            self.notes += [f"adopted: {line}" for line in entry.account]
            self._overlay(found, entry, stock, had_pyc)
        self.foreign += [(path, f"was edited, and no overlay can be made from it: {why}") for path, why in
                         result.refused.items()]  # fmt: skip

    def refuse(self) -> None:
        """Raise for the first kind of trouble that was met."""
        if self.damaged and not self.foreign:
            raise refusals.damaged(self.e.target, [path for path, _ in self.damaged])
        if self.foreign or self.damaged:
            raise refusals.edited(self.e, [*self.foreign, *self.damaged], adopt=self.adopt)
        if self.absent:
            raise refusals.absent(self.e.target, self.absent)
        if self.unseen:
            raise refusals.unseen(self.e.target, self.unseen, self.manifest)

    def changes(self) -> Changes:
        """Return the plan with the new receipt; None as plan where the disk already is as wanted."""
        files = tuple(sorted(self.files, key=lambda file: file.path))
        old = self.e.receipt
        told = {word: tuple(paths) for word, paths in self.done.items()}
        if not self.steps and files == (old.files if old is not None else ()):
            return Changes(None, unchanged=told["unchanged"], notes=tuple(self.notes))
        receipt = Receipt(
            line=self.manifest.line,
            overlay_version=self.manifest.version,
            manifest_sha256=self.manifest.sha256,
            tool_version=rocm_overlay.__version__,
            time=timestamp(),
            target=receipt_target(self.e.target, self.e.record),
            files=files,
        )
        plan = Plan(
            kind=journal.INSTALL,
            version=self.e.target.version or "",
            created=receipt.time,
            steps=tuple(sorted(self.steps, key=lambda step: step.path)),
            receipt_before=self.e.receipt_on_disk,
            receipt_after=receipt.to_json(),
            keep=tuple(self.texts),
        )
        return Changes(plan, **told, notes=(*self.notes, *self._moved_on(files)))

    def _edited(self, found: Observed, facts: Facts, fitting: FileEntry | None) -> None:
        """A text that is not stock: an overlay that was made from exactly this one fits, and --adopt makes one."""
        again = facts.state is FileState.BASE and facts.receipt is not None and facts.receipt.origin != OWN
        asked = again or (self.adopt and facts.state in ADOPTABLE)
        had_pyc = compiled(self.e.place, facts.path)
        exact = fitting is not None and fitting.origin != BUNDLE and fitting.stock_sha256 == facts.digest
        if fitting is not None and (asked or exact):
            self._overlay(found, fitting, found.entry, had_pyc)
        elif asked and facts.entry is not None:
            self._overlay(found, facts.entry, found.entry, had_pyc)
        elif asked:
            self.to_make[facts.path] = (found, found.entry, found.data, had_pyc)
        else:
            self._foreign(facts)

    def _overlay(self, found: Observed, entry: FileEntry, stock: Entry, had_pyc: tuple[str, ...]) -> None:
        """Plan to replace what was found by the overlay of ``entry``; ``stock`` is what revert restores."""
        facts = self.e.facts(entry.path)
        users = stock.sha256 not in facts.stock
        origin = ADOPTED if users and entry.origin == BUNDLE else entry.origin
        recorded = None if origin == BUNDLE else facts.recorded
        digest = entry.overlay_sha256
        self.files.append(
            ReceiptFile(entry.path, entry.model, stock, digest, had_pyc, origin=origin, recorded=recorded)
        )
        if found.entry.sha256 == digest:  # made again, with the same result
            self.done["unchanged"].append(entry.path)
            return
        data = entry.overlay_bytes()
        avoided = dataclasses.replace(found, seconds=found.seconds | {stock.mtime_ns // 10**9})
        after = dataclasses.replace(
            found.entry.as_file(), sha256=digest, size=len(data), mtime_ns=avoided.fresh_mtime(now_ns())
        )
        self.steps.append(Step(entry.path, found, after, data))
        self.done["updated" if facts.state is FileState.OVERLAY else "installed"].append(entry.path)
        if users:
            self.done["adopted"].append(entry.path)
        if entry.origin == OWN:
            self._say_what_is_lost(entry, stock)

    def _say_what_is_lost(self, entry: FileEntry, stock: Entry) -> None:
        from . import own

        lost = own.lost_names(self.e.target, entry, self._base(entry.path, stock))
        if lost:
            self.notes.append(f"{entry.path} lacks what other files import from it: {', '.join(lost)}")

    def _base(self, path: str, stock: Entry) -> bytes:
        observed = self.e.facts(path).observed
        if observed is not None and observed.entry.sha256 == stock.sha256:
            return observed.data
        return self.e.base_text(path, stock.sha256)

    def _keep_or_update(self, found: Observed, old: ReceiptFile, entries: tuple[FileEntry, ...]) -> None:
        """An overlay that the receipt lists: there may be another one now for the text that it was made from."""
        if old.made_from is not None and not self.adopt:
            raise refusals.adopted_by_an_older_version(self.e.target, old)
        entry = next((one for one in entries if one.fits(old.stock.sha256)), None)
        if old.origin == OWN and entry is not None and entry.origin != OWN:
            self.notes.append(f"{old.path} stays your own file; `overlay revert` makes way for another overlay")
            entry = None
        if entry is None and (old.made_from is not None or (old.origin == ADOPTED and self.adopt)):
            self.to_make[old.path] = (found, old.stock, self._base(old.path, old.stock), old.had_pyc)
        elif entry is not None:
            self._overlay(found, entry, old.stock, old.had_pyc)
        elif old.origin == BUNDLE:
            self.unseen.append((old.path, old.stock.sha256))
        else:
            self.files.append(old)
            self.done["unchanged"].append(old.path)

    def _recognise(self, found: Observed, facts: Facts, entries: tuple[FileEntry, ...]) -> None:
        """Our text without a receipt (the state folder was lost): write the receipt anew, from the bundle."""
        entry = facts.shipped
        assert entry is not None
        self.texts.append(entry.stock_bytes())
        had_pyc = compiled(self.e.place, facts.path)
        wanted = next((one for one in entries if one.fits(entry.stock_sha256)), entry)
        self._overlay(found, wanted, restored_entry(found, entry), had_pyc)

    def _moved_on(self, files: tuple[ReceiptFile, ...]) -> list[str]:
        """Say which of the user's own files lie on another stock text now than at their last install."""
        before = self.e.receipt_on_disk if self.e.receipt is None else None
        if before is None:
            return []
        last = Receipt.from_json(Reader(before, "receipt.json"))
        then = {file.path: file for file in last.files if file.origin == OWN}
        return [
            f"{file.path}: your file was installed on the text {then[file.path].stock.sha256[:12]} of transformers "
            f"{last.target.version}, and this release has {file.stock.sha256[:12]}: check that it still fits"
            for file in files
            if file.origin == OWN and file.path in then and then[file.path].stock.sha256 != file.stock.sha256
        ]

    def _foreign(self, facts: Facts) -> None:
        self.foreign.append((facts.path, refusals.describe(facts)))


def restored_entry(found: Observed, entry: FileEntry) -> Entry:
    """Return the entry to give a stock text when its own metadata was lost: the present one, one second older."""
    mtime_ns = (min(found.seconds) - 1) * 10**9
    return dataclasses.replace(
        found.entry, kind=FILE, link_target=None, sha256=entry.stock_sha256, size=entry.stock_size, mtime_ns=mtime_ns
    )


def plan_revert(environment: Environment, *, force: bool) -> Changes:
    """Plan to put back every base text of the receipt, and of files that show by themselves that we were there: an
    earlier state folder was lost. Raises ForeignError for edited files unless ``force``.
    """
    receipt = environment.receipt
    assert receipt is not None
    others = _recognised(environment)
    edited = [path for path in others.edited if path not in others.strange]  # the strange ones no force restores
    steps, removed, unchanged = [*others.steps], [*others.removed], []
    for file in receipt.files:
        facts = environment.facts(file.path)
        if facts.digest == file.stock.sha256:
            unchanged.append(file.path)
            continue
        # A reinstall that put stock in the place of an adopted text is no edit: RECORD has that text.
        foreign = facts.state not in (FileState.OVERLAY, FileState.MISSING, *BACK)
        if foreign:
            edited.append(file.path)
        text = environment.base_text(file.path, file.stock.sha256)
        steps.append(Step(file.path, facts.observed, file.stock, text, rescue=foreign))
        removed.append(file.path)
    if edited and not force:
        raise refusals.edited_since(environment.target, edited)
    # What never carried our marker is somebody's own file, of which a receipt of other files says nothing.
    left = tuple(path for path in others.strange if path in others.edited)
    return dataclasses.replace(_revert(environment, steps, removed, unchanged), left=left)


def plan_revert_without_receipt(environment: Environment, *, force: bool) -> Changes:
    """Plan to put back stock texts where only the files themselves show that we were here.

    Raises ForeignError for texts that carry our marker but are not ours as shipped, unless ``force`` and the marker's
    stock hash is known to the bundle; and where the only texts that are not stock are none that we could put back.
    """
    found = _recognised(environment)
    if found.edited and not force:
        raise refusals.edited_since(environment.target, found.edited)
    if found.strange and not found.steps:
        raise refusals.not_ours(environment.target, found.strange)
    if not found.steps:
        return Changes(None)
    return dataclasses.replace(_revert(environment, found.steps, found.removed, []), left=tuple(found.strange))


@dataclass(frozen=True)
class _Recognised:
    """Files known by their text alone: what puts stock back, and the paths that are put back (``edited`` of them were
    changed after us) or are ``strange``: neither stock nor ours, or ours of a stock text that the bundle has not.
    """

    steps: list[Step] = dataclasses.field(default_factory=list)
    removed: list[str] = dataclasses.field(default_factory=list)
    edited: list[str] = dataclasses.field(default_factory=list)
    strange: list[str] = dataclasses.field(default_factory=list)


def _recognised(environment: Environment) -> _Recognised:
    """Look at every path of the bundle that the receipt does not list."""
    seen = _Recognised()
    listed = environment.receipt.by_path() if environment.receipt is not None else {}
    for path in environment.bundled():
        facts = environment.facts(path)
        state, found = facts.state, facts.observed
        known = state in BACK or (state is FileState.UNLISTED and facts.entry is not None)
        if path in listed or found is None or known:
            continue
        entry = facts.shipped if state is FileState.OVERLAY else None
        if state is FileState.OVERLAY_OTHER:
            seen.edited.append(path)
            first = found.data.split(b"\n", 1)[0]
            named = (one for one in facts.entries if b"base=sha256:" + one.stock_sha256.encode() in first)
            entry = next((one for one in named if facts.recorded in (None, one.stock_sha256)), None)
        if entry is None:
            seen.strange.append(path)
            continue
        edited = state is not FileState.OVERLAY
        seen.steps.append(Step(path, found, restored_entry(found, entry), entry.stock_bytes(), rescue=edited))
        seen.removed.append(path)
    return seen


def plan_forget(environment: Environment) -> Changes:
    """Plan to drop a receipt that belongs to another release, without touching any file."""
    return _revert(environment, [], [], [])


def _revert(environment: Environment, steps: list[Step], removed: list[str], unchanged: list[str]) -> Changes:
    plan = Plan(
        kind=journal.REVERT,
        version=environment.target.version or "",
        created=timestamp(),
        steps=tuple(sorted(steps, key=lambda step: step.path)),
        receipt_before=environment.receipt_on_disk,
        receipt_after=None,
    )
    return Changes(plan, removed=tuple(sorted(removed)), unchanged=tuple(sorted(unchanged)))


def left_behind(place: Place, plan: Plan) -> list[tuple[str, str]]:
    """Return (path, sha256) of the users' texts that this plan takes from the receipt without putting them back.

    That is so where an upgrade or reinstall of transformers has replaced the overlay of an adopted text.
    """
    if plan.receipt_before is None:
        return []
    wanted = {step.path: step.after.sha256 for step in plan.steps}
    after = Receipt.from_json(Reader(plan.receipt_after, "receipt.json")).by_path() if plan.receipt_after else {}
    found = []
    for file in Receipt.from_json(Reader(plan.receipt_before, "receipt.json")).files:
        base = file.stock.sha256
        kept = file.path in after and after[file.path].stock.sha256 == base
        if base == file.belongs_to or kept:
            continue
        found_now = place.tree.observe(place.target(file.path))
        if (wanted.get(file.path) or (found_now and found_now.entry.sha256)) != base:
            found.append((file.path, base))
    return found


def receipt_target(target: Target, record: Record) -> ReceiptTarget:
    """Return what the receipt says about the environment."""
    return ReceiptTarget(
        executable=target.executable,
        prefix=target.prefix,
        purelib=str(target.site),
        dist_info=target.dist_info.name if target.dist_info else None,
        version=target.version or "",
        record_sha256=record.sha256,
        installer=target.installer,
        kind=target.kind,
    )


def timestamp() -> str:
    """Return the time for people and logs: UTC, to the second. No decision depends on it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
