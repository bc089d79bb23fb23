"""Turns what is on disk, the receipt and the bundle into a plan. Reads only; every refusal is made here."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import rocm_overlay

from . import foreign
from .catalog import FileEntry, Manifest
from .nearest import nearest
from .record import Record
from .situation import Situation
from .target import Target
from .transaction import blobs, journal
from .transaction.apply import Plan, Step
from .transaction.bytecode import compiled
from .transaction.entry import FILE, Entry, Observed
from .transaction.errors import ForeignError, UnsupportedError, UsageError
from .transaction.place import now_ns
from .transaction.receipt import Receipt, ReceiptFile, ReceiptTarget
from .transaction.states import MARKER


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
    """Files of ``installed`` whose text of other people is what revert returns."""


def select_models(manifest: Manifest, names: Iterable[str] | None) -> tuple[str, ...]:
    """Check model names; None means all. Raises UsageError that names the nearest known one."""
    known = manifest.models()
    if names is None:
        return known
    chosen = list(dict.fromkeys(names))
    if not chosen:
        raise UsageError(
            "no-model",
            f"--models names no model, expected some of {manifest.line}: {', '.join(known)}",
            remedy=f"run `overlay install --transformers {manifest.line} --models {known[0]}`, "
            "or leave --models out for all of them",
        )
    unknown = [name for name in chosen if name not in known]
    if unknown:
        near = nearest(unknown[0], known)
        hint = f"; did you mean {near}?" if near else ""
        raise UsageError(
            "unknown-model",
            f"--models: {', '.join(unknown)} is not among the models of {manifest.line}: {', '.join(known)}{hint}",
            remedy=f"run `overlay install --transformers {manifest.line} --models {near or known[0]}`, "
            "or leave --models out for all of them",
        )
    return tuple(sorted(chosen))


def plan_install(situation: Situation, manifest: Manifest, models: tuple[str, ...], *, adopt: bool = False) -> Changes:
    """Plan the full desired set: these models overlaid, everything else stock.

    Raises ForeignError for edited files, unless ``adopt``: then they are overlaid, too, and what they hold now is what
    revert returns. Raises UnsupportedError for stock texts that no overlay was made for.
    """
    run = _Install(situation, manifest, adopt)
    wanted = {path: entries for path, entries in manifest.by_path().items() if entries[0].model in models}
    for path, entries in wanted.items():
        run.want(path, entries)
    old = situation.receipt.by_path() if situation.receipt else {}
    for path, file in old.items():
        if path not in wanted:
            run.drop(file)
    run.refuse()
    return run.changes()


class _Install:
    def __init__(self, situation: Situation, manifest: Manifest, adopt: bool) -> None:
        self.s = situation
        self.manifest = manifest
        self.adopt = adopt
        self.adopted: list[str] = []
        self.old = situation.receipt.by_path() if situation.receipt else {}
        self.steps: list[Step] = []
        self.files: list[ReceiptFile] = []
        self.keep: list[bytes] = []
        self.installed: list[str] = []
        self.updated: list[str] = []
        self.removed: list[str] = []
        self.unchanged: list[str] = []
        self.foreign: list[tuple[str, str]] = []
        self.unseen: list[tuple[str, str]] = []

    def want(self, path: str, entries: tuple[FileEntry, ...]) -> None:
        """Decide for one path that shall hold an overlay."""
        found = self.s.observe(path)
        recorded = self.s.record.get(path)
        if found is None or (self.s.record.present and recorded is None):
            self._absent(path, found)
            return
        digest, old = found.entry.sha256, self.old.get(path)
        fitting = {entry.stock_sha256: entry for entry in entries}
        if digest in fitting and recorded in (None, digest):
            self._overlay(found, fitting[digest], found.entry, compiled(self.s.place, path))
            self.installed.append(path)
        elif old is not None and digest == old.overlay_sha256:
            self._keep_or_update(found, old, fitting)
        elif any(digest == entry.overlay_sha256 and entry.edits for entry in entries):
            self._recognise(path, found, next(entry for entry in entries if digest == entry.overlay_sha256))
        elif digest == recorded:
            self.unseen.append((path, digest))
        elif self.adopt and old is None and not found.data.startswith(MARKER):
            self._adopt(path, found, entries)
        else:
            self._foreign(path, found)

    def drop(self, file: ReceiptFile) -> None:
        """Decide for one path that was overlaid and is not wanted any more."""
        found = self.s.observe(file.path)
        if found is None:
            self.foreign.append((file.path, "is missing"))
        elif found.entry.sha256 == file.overlay_sha256:
            text = blobs.fetch(self.s.place, file.path, file.stock.sha256, self.s.stock_text)
            self.steps.append(Step(file.path, found, file.stock, text))
            self.removed.append(file.path)
        elif found.entry.sha256 != file.stock.sha256:
            self._foreign(file.path, found)

    def refuse(self) -> None:
        """Raise for the first kind of trouble that was met."""
        version = self.s.target.version
        if self.foreign:
            paths = [self.s.target.package / path for path, _ in self.foreign]
            if all(self.s.observe(path) is None for path, _ in self.foreign):
                raise _damaged(self.s.target, paths)
            raise ForeignError(
                "edited-files",
                f"{len(self.foreign)} file(s) are neither the stock text of transformers {version} nor ours: "
                + "; ".join(f"{self.s.target.package / path} {what}" for path, what in self.foreign)
                + "."
                + foreign.culprit(self.s.target, self.s.record)
                + " Nothing was written.",
                remedy="keep your edits elsewhere and reinstall transformers "
                f"(`{_reinstall(self.s.target)}`), leave these models out with --models, or overlay them as they are "
                "with --adopt: revert then returns exactly their text",
                paths=paths,
            )
        if self.unseen:
            paths = [self.s.target.package / path for path, _ in self.unseen]
            nearest = self.manifest.releases[-1]
            raise UnsupportedError(
                "unseen-text",
                f"transformers {version} has stock texts that no overlay was made for: "
                + "; ".join(f"{self.s.target.package / path} (sha256 {digest[:12]})" for path, digest in self.unseen)
                + f"; the nearest known release is {nearest}. Nothing was written.",
                remedy=f"install transformers=={nearest}, or generate overlays for this release with "
                "`overlay gen --all --from-installed -o DIR`",
                paths=paths,
            )

    def changes(self) -> Changes:
        """Return the plan with the new receipt; None as plan where the disk already is as wanted."""
        files = tuple(sorted(self.files, key=lambda file: file.path))
        old = self.s.receipt
        if not self.steps and old is not None and old.files == files:
            return Changes(None, unchanged=tuple(self.unchanged))
        receipt = Receipt(
            line=self.manifest.line,
            overlay_version=self.manifest.version,
            manifest_sha256=self.manifest.sha256,
            tool_version=rocm_overlay.__version__,
            time=timestamp(),
            target=receipt_target(self.s.target, self.s.record),
            files=files,
        )
        plan = Plan(
            kind=journal.INSTALL,
            version=self.s.target.version or "",
            created=receipt.time,
            steps=tuple(sorted(self.steps, key=lambda step: step.path)),
            receipt_before=self.s.receipt_on_disk,
            receipt_after=receipt.to_json(),
            keep=tuple(self.keep),
        )
        return Changes(
            plan,
            installed=tuple(self.installed),
            updated=tuple(self.updated),
            removed=tuple(self.removed),
            unchanged=tuple(self.unchanged),
            adopted=tuple(self.adopted),
        )

    def _overlay(
        self, found: Observed, entry: FileEntry, stock: Entry, had_pyc: tuple[str, ...], *, adopted: bool = False
    ) -> None:
        """Plan to replace what was found by the overlay of ``entry``; ``stock`` is what revert restores."""
        data = entry.overlay_bytes()
        avoided = dataclasses.replace(found, seconds=found.seconds | {stock.mtime_ns // 10**9})
        after = dataclasses.replace(
            found.entry.as_file(), sha256=entry.overlay_sha256, size=len(data), mtime_ns=avoided.fresh_mtime(now_ns())
        )
        self.steps.append(Step(entry.path, found, after, data))
        made_from = entry.stock_sha256 if adopted else None
        self.files.append(ReceiptFile(entry.path, entry.model, stock, entry.overlay_sha256, had_pyc, made_from))

    def _keep_or_update(self, found: Observed, old: ReceiptFile, fitting: dict[str, FileEntry]) -> None:
        entry = fitting.get(old.made_from or old.stock.sha256)
        if entry is None:
            self.unseen.append((old.path, old.stock.sha256))
        elif entry.overlay_sha256 == old.overlay_sha256:
            self.files.append(old)
            self.unchanged.append(old.path)
        else:
            self._overlay(found, entry, old.stock, old.had_pyc, adopted=old.made_from is not None)
            self.updated.append(old.path)

    def _adopt(self, path: str, found: Observed, entries: tuple[FileEntry, ...]) -> None:
        """Overlay a text that somebody else wrote, as they asked: what is there now is what revert will return."""
        recorded, version = self.s.record.get(path), self.s.target.version
        fitting = [
            one for one in entries if recorded == one.stock_sha256 or (recorded is None and version in one.releases)
        ]
        if len(fitting) != 1:
            self._foreign(path, found)
            return
        self._overlay(found, fitting[0], found.entry, compiled(self.s.place, path), adopted=True)
        self.installed.append(path)
        self.adopted.append(path)

    def _recognise(self, path: str, found: Observed, entry: FileEntry) -> None:
        """Our text without a receipt (the state folder was lost): write the receipt anew, from the bundle."""
        if self.s.record.get(path) not in (None, entry.stock_sha256):
            self._foreign(path, found)
            return
        self.keep.append(entry.stock_bytes())
        stock = restored_entry(found, entry)
        self.files.append(ReceiptFile(path, entry.model, stock, entry.overlay_sha256, compiled(self.s.place, path)))
        self.unchanged.append(path)

    def _absent(self, path: str, found: Observed | None) -> None:
        if found is None and path in self.s.record.digests:
            self.foreign.append((path, "is missing, although the package's RECORD lists it"))
        elif found is None:
            self.foreign.append((path, "is missing"))
        else:
            self.foreign.append((path, "is not listed in the package's RECORD"))

    def _foreign(self, path: str, found: Observed) -> None:
        recorded = self.s.record.get(path)
        expected = f", expected {recorded[:12]}" if recorded else ""
        self.foreign.append((path, f"has sha256 {found.entry.sha256[:12]}{expected}"))


def restored_entry(found: Observed, entry: FileEntry) -> Entry:
    """Return the entry to give a stock text when its own metadata was lost: the present one, one second older."""
    mtime_ns = (min(found.seconds) - 1) * 10**9
    return dataclasses.replace(
        found.entry, kind=FILE, link_target=None, sha256=entry.stock_sha256, size=entry.stock_size, mtime_ns=mtime_ns
    )


def plan_revert(situation: Situation, manifests: Iterable[Manifest], *, force: bool) -> Changes:
    """Plan to put back every stock text of the receipt, and of files that show by themselves that we were there: an
    earlier state folder was lost. Raises ForeignError for edited files unless ``force``.
    """
    receipt = situation.receipt
    assert receipt is not None
    others = _recognised(situation, manifests, without={file.path for file in receipt.files})
    edited = [path for path in others.edited if path not in others.strange]  # the strange ones no force restores
    steps, removed, unchanged = [*others.steps], [*others.removed], []
    for file in receipt.files:
        found = situation.observe(file.path)
        digest = found.entry.sha256 if found else None
        if digest == file.stock.sha256:
            unchanged.append(file.path)
            continue
        foreign = digest not in (None, file.overlay_sha256)
        if foreign:
            edited.append(file.path)
        text = blobs.fetch(situation.place, file.path, file.stock.sha256, situation.stock_text)
        steps.append(Step(file.path, found, file.stock, text, rescue=foreign))
        removed.append(file.path)
    if edited and not force:
        raise edited_since(situation.target, edited)
    # What never carried our marker is somebody's own file, of which a receipt of other files says nothing.
    left = tuple(path for path in others.strange if path in others.edited)
    return dataclasses.replace(_revert(situation, steps, removed, unchanged), left=left)


def plan_revert_without_receipt(situation: Situation, manifests: Iterable[Manifest], *, force: bool) -> Changes:
    """Plan to put back stock texts where only the files themselves show that we were here.

    Raises ForeignError for texts that carry our marker but are not ours as shipped, unless ``force`` and the marker's
    stock hash is known to the bundle; and where the only texts that are not stock are none that we could put back.
    """
    found = _recognised(situation, manifests)
    if found.edited and not force:
        raise edited_since(situation.target, found.edited)
    if found.strange and not found.steps:
        raise _not_ours(situation.target, found.strange)
    if not found.steps:
        return Changes(None)
    return dataclasses.replace(_revert(situation, found.steps, found.removed, []), left=tuple(found.strange))


@dataclass(frozen=True)
class _Recognised:
    """Files known by their text alone: what puts stock back, and the paths that are put back (``edited`` of them were
    changed after us) or are ``strange``: neither stock nor ours, or ours of a stock text that the bundle has not.
    """

    steps: list[Step] = dataclasses.field(default_factory=list)
    removed: list[str] = dataclasses.field(default_factory=list)
    edited: list[str] = dataclasses.field(default_factory=list)
    strange: list[str] = dataclasses.field(default_factory=list)


def _recognised(situation: Situation, manifests: Iterable[Manifest], without: Collection[str] = ()) -> _Recognised:
    seen = _Recognised()
    for path, entries in _all_paths(manifests).items():
        if path in without:
            continue
        found = situation.observe(path)
        recorded = situation.record.get(path)
        if found is None or found.entry.sha256 in ({recorded} if recorded else {e.stock_sha256 for e in entries}):
            continue
        entry = next((entry for entry in entries if entry.overlay_sha256 == found.entry.sha256), None)
        foreign = entry is None
        if entry is None and found.data.startswith(MARKER):
            seen.edited.append(path)
            entry = next((entry for entry in entries if f"base=sha256:{entry.stock_sha256}".encode() in
                          found.data.split(b"\n", 1)[0]), None)  # fmt: skip
        if entry is None or recorded not in (None, entry.stock_sha256):
            seen.strange.append(path)
            continue
        seen.steps.append(Step(path, found, restored_entry(found, entry), entry.stock_bytes(), rescue=foreign))
        seen.removed.append(path)
    return seen


def plan_forget(situation: Situation) -> Changes:
    """Plan to drop a receipt that belongs to another release, without touching any file."""
    return _revert(situation, [], [], [])


def _revert(situation: Situation, steps: list[Step], removed: list[str], unchanged: list[str]) -> Changes:
    plan = Plan(
        kind=journal.REVERT,
        version=situation.target.version or "",
        created=timestamp(),
        steps=tuple(sorted(steps, key=lambda step: step.path)),
        receipt_before=situation.receipt_on_disk,
        receipt_after=None,
    )
    return Changes(plan, removed=tuple(sorted(removed)), unchanged=tuple(sorted(unchanged)))


def edited_since(target: Target, edited: list[str]) -> ForeignError:
    """Refuse to replace texts that somebody changed after the install."""
    paths = [target.package / path for path in edited]
    return ForeignError(
        "edited-since",
        f"{len(edited)} overlaid file(s) were edited after the install: {', '.join(map(str, paths))}. "
        "Nothing was written.",
        remedy="run `overlay revert --force`: it copies your text to .amd-overlay/rescued/ and then restores stock",
        paths=paths,
    )


def _not_ours(target: Target, strange: list[str]) -> ForeignError:
    """Refuse where nothing tells which stock text a file shall get back."""
    paths = [target.package / path for path in strange]
    return ForeignError(
        "not-ours",
        f"There is no receipt, and {len(strange)} file(s) are neither the stock text of transformers {target.version} "
        f"nor ours: {', '.join(map(str, paths))}. Nothing was written.",
        remedy=f"keep your edits elsewhere and reinstall transformers: `{_reinstall(target)}`",
        paths=paths,
    )


def _damaged(target: Target, paths: list[Path]) -> ForeignError:
    return ForeignError(
        "damaged-install",
        f"The installed transformers {target.version} is damaged: {len(paths)} of its files are missing: "
        f"{', '.join(map(str, paths))}. Nothing was written.",
        remedy=f"reinstall transformers: `{_reinstall(target)}`",
        paths=paths,
    )


def _reinstall(target: Target) -> str:
    return f"pip install --force-reinstall --no-deps transformers=={target.version}"


def _all_paths(manifests: Iterable[Manifest]) -> dict[str, list[FileEntry]]:
    paths: dict[str, list[FileEntry]] = {}
    for manifest in manifests:
        for file in manifest.files:
            paths.setdefault(file.path, []).append(file)
    return dict(sorted(paths.items()))


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
