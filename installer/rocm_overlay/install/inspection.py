"""`overlay status` and `overlay diff`: desired against actual, stock against present. Both only read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import catalog, record
from .deep import Deep, verify
from .generated import PREFIX
from .patches import unified
from .session import Options, heal, manifests_of, open_place, read_situation
from .situation import Situation
from .target import HOOK, Target, resolve
from .transaction import blobs, journal, receipt, states
from .transaction.errors import OverlayError
from .transaction.states import FileState, State

if TYPE_CHECKING:
    from .transaction.recovery import Recovered


@dataclass(frozen=True)
class FileStatus:
    """One managed file: its state, and the hashes that decided it."""

    path: str
    model: str
    state: FileState
    found: str | None
    stock: str | None
    overlay: str | None


@dataclass(frozen=True)
class Status:
    """Desired (the receipt) against actual (the disk)."""

    state: State
    target: Target
    receipt: receipt.Receipt | None
    files: tuple[FileStatus, ...]
    recovered: Recovered | None = None
    notes: tuple[str, ...] = field(default=())
    deep: Deep | None = None
    mode: str | None = None
    """How overlays reach the interpreter: files, hook, or None where none do."""


def status(options: Options, *, deep: bool = False) -> Status:
    """Compare what shall be applied with what is there; finishes an interrupted transaction first where it can.

    With ``deep`` every file that the package's RECORD lists is hashed, not only those that have overlays.
    """
    target = resolve(site_packages=options.site_packages, python=options.python, allow_missing=True, writes=False)
    found = _status(target, options)
    if not deep or target.version is None:
        return found
    ours = {file.path for file in found.files if file.state is FileState.OVERLAY}
    return replace(found, deep=verify(target, record.load(target.dist_info), ours))


def _status(target: Target, options: Options) -> Status:
    place = open_place(target)
    try:
        recovered = heal(place, target, options)
    except OverlayError as error:
        if not journal.is_open(place):
            raise
        return Status(State.INTERRUPTED, target, None, (), notes=(*target.notes, error.message, error.remedy))
    situation = read_situation(place, target, options.bundle, keep_orphan=True)
    if situation.receipt is not None:
        return replace(_status_with_receipt(situation, situation.receipt, options, recovered), mode="files")
    if HOOK in place.tree.names("."):
        return _status_with_hook(situation, recovered)
    return _status_without_receipt(situation, options, recovered)


def diff(options: Options) -> tuple[Target, list[tuple[str, bytes]]]:
    """Return the unified diff from stock to what is there, for each managed file that differs."""
    target = resolve(site_packages=options.site_packages, python=options.python, writes=False)
    place = open_place(target)
    heal(place, target, options)
    situation = read_situation(place, target, options.bundle)
    differences = []
    for path, digest in _stock_by_path(situation, options.bundle).items():
        found = situation.observe(path)
        if found is not None and found.entry.sha256 == digest:
            continue
        stock = blobs.fetch(place, path, digest, situation.stock_text)
        name = place.target(path)
        text = unified(stock, found.data if found else b"", f"a/{name}", f"b/{name}" if found else "/dev/null")
        differences.append((path, text))
    return target, differences


def _status_with_receipt(
    situation: Situation, current: receipt.Receipt, options: Options, recovered: Recovered | None
) -> Status:
    target = situation.target
    files = []
    for file in current.files:
        found = situation.observe(file.path)
        state = states.classify(found, {file.stock.sha256}, {file.overlay_sha256})
        digest = found.entry.sha256 if found else None
        files.append(FileStatus(file.path, file.model, state, digest, file.stock.sha256, file.overlay_sha256))
    notes = list(target.notes)
    adopted = [file.path for file in current.files if file.made_from is not None]
    if adopted:
        notes.append(f"adopted, so revert returns exactly what was found: {', '.join(adopted)}")
    if states.is_orphaned(current, target.version, situation.record):
        found_version = target.version or "none"
        notes.append(f"the receipt is for transformers {current.target.version}, found {found_version}")
        return Status(State.ORPHANED, target, current, tuple(files), recovered, tuple(notes))
    overall = states.with_receipt((file.state for file in files), stale=_is_stale(current, options.bundle))
    return Status(overall, target, current, tuple(files), recovered, tuple(notes))


def _status_with_hook(situation: Situation, recovered: Recovered | None) -> Status:
    """Name the state of an environment whose overlays are served at import: the files themselves stay stock."""
    from .hook import installed
    from .hook.view import served_files

    target, notes = situation.target, list(situation.target.notes)
    hook = installed.load(situation.place)
    assert hook is not None
    served = () if target.version is None else served_files(target, Path(hook.bundle), hook.models)
    files = tuple(
        FileStatus(one.path, one.model, FileState.STOCK if one.served else FileState.FOREIGN, one.found, None, None)
        for one in served
    )
    notes.append(f"overlays are served at import by {situation.place.tree.root / HOOK}; the files stay stock")
    notes += [f"{one.path} is imported as it is: {one.why}" for one in served if not one.served]
    if not Path(hook.start).is_file():
        notes.append(f"{hook.start} is gone, so nothing is served: install the tool again or run `overlay revert`")
        state = State.DRIFTED
    elif target.version != hook.version:
        notes.append(f"the hook was installed for transformers {hook.version}, found {target.version or 'none'}")
        state = State.ORPHANED
    else:
        whole = all(one.served for one in served)
        state = State.APPLIED if served and whole else State.PARTIAL
    return Status(state, target, None, files, recovered, tuple(notes), mode="hook")


def _is_stale(current: receipt.Receipt, bundle: Path) -> bool:
    """Tell whether the bundle has another overlay now for a text that is overlaid."""
    if current.overlay_version.startswith(PREFIX):
        return False  # not from the bundle
    if current.line not in catalog.lines(bundle):
        return False
    manifest = catalog.load(current.line, bundle)
    if manifest.sha256 == current.manifest_sha256:
        return False
    latest = {(file.path, file.stock_sha256): file.overlay_sha256 for file in manifest.files}
    return any(
        latest.get((file.path, file.made_from or file.stock.sha256), file.overlay_sha256) != file.overlay_sha256
        for file in current.files
    )


def _status_without_receipt(situation: Situation, options: Options, recovered: Recovered | None) -> Status:
    target = situation.target
    notes, files, supported = list(target.notes), [], False
    for manifest in manifests_of(target, options.bundle):
        supported = True
        for path, entries in manifest.by_path().items():
            found = situation.observe(path)
            recorded = situation.record.get(path)
            known = {entry.stock_sha256 for entry in entries}
            stock = {recorded} if recorded else known
            state = states.classify(found, stock, {entry.overlay_sha256 for entry in entries})
            digest = found.entry.sha256 if found else None
            supported = supported and not (state is FileState.STOCK and digest not in known)
            files.append(FileStatus(path, entries[0].model, state, digest, recorded, None))
    if any(file.state is FileState.OVERLAY for file in files):
        notes.append(
            "overlay text without a receipt: `overlay revert` restores stock, `overlay install` writes a new one"
        )
    overall = states.without_receipt((file.state for file in files), supported=supported)
    return Status(overall, target, None, tuple(files), recovered, tuple(notes))


def _stock_by_path(situation: Situation, bundle: Path) -> dict[str, str]:
    """Return the stock hash of every path that `diff` compares."""
    if situation.receipt is not None:
        return {file.path: file.stock.sha256 for file in situation.receipt.files}
    hashes = {}
    for manifest in manifests_of(situation.target, bundle):
        for path, entries in manifest.by_path().items():
            recorded = situation.record.get(path)
            known = {entry.stock_sha256 for entry in entries}
            if recorded in known:
                hashes[path] = str(recorded)
            elif len(known) == 1:
                hashes[path] = known.pop()
    return hashes
