"""`overlay status` and `overlay diff`: desired against actual, stock against present.

Both only read. They take no lock and recover nothing: an open transaction is shown, with the command that ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import UnrecoveredError
from . import catalog, record
from .deep import Deep, verify
from .looking import busy, settled
from .patches import unified
from .session import Options, open_place, read_environment
from .state import Environment
from .target import HOOK, Target, resolve
from .transaction import receipt, states
from .transaction.states import FileState, State

_WORDS = {
    FileState.FOREIGN: "edited",
    FileState.OVERLAY_OTHER: "other overlay",
    FileState.OTHER_STOCK: "stock of another release",
}


@dataclass(frozen=True)
class FileStatus:
    """One managed file: its state, and the hashes that decided it.

    ``stock`` is the text of the release, ``base`` the one that revert returns, ``origin`` where the overlay comes from.
    """

    path: str
    model: str
    state: FileState
    found: str | None
    stock: str | None
    overlay: str | None
    base: str | None = None
    origin: str | None = None
    said: str = ""
    """What the file is, in words that fit after "is"."""

    @property
    def word(self) -> str:
        """What a reader is shown: for an overlay that is not the bundle's, where it comes from."""
        foreign = self.state is FileState.OVERLAY and self.origin not in (None, receipt.BUNDLE)
        return str(self.origin) if foreign else _WORDS.get(self.state, self.state.value)


@dataclass(frozen=True)
class Status:
    """Desired (the receipt) against actual (the disk)."""

    state: State
    target: Target
    receipt: receipt.Receipt | None
    files: tuple[FileStatus, ...]
    notes: tuple[str, ...] = field(default=())
    deep: Deep | None = None
    mode: str | None = None
    """How overlays reach the interpreter: files, hook, or None where none do."""


def status(options: Options, *, deep: bool = False) -> Status:
    """Compare what shall be applied with what is there. Nothing is written and nobody is waited for.

    With ``deep`` every file that the package's RECORD lists is hashed, not only those that have overlays. Raises
    BusyError while another command is at work for longer than a second.
    """
    target = resolve(site_packages=options.site_packages, python=options.python, allow_missing=True, writes=False)
    found = _status(target, options)
    if not deep or target.version is None:
        return found
    ours = {file.path for file in found.files if file.state is FileState.OVERLAY}
    return replace(found, deep=verify(target, record.load(target.dist_info), ours))


def _status(target: Target, options: Options) -> Status:
    place = open_place(target)
    open_kind = settled(place)
    if open_kind is not None:
        notes = (f"an {open_kind} was interrupted: run `overlay recover` to put its files in order",)
        return Status(State.INTERRUPTED, target, None, (), (*target.notes, *notes))
    environment = read_environment(place, target, options.bundle, keep_orphan=True)
    if environment.receipt is not None:
        return replace(_with_receipt(environment, environment.receipt, options), mode="files")
    if HOOK in place.tree.names("."):
        return _with_hook(environment)
    return _without_receipt(environment)


def diff(options: Options) -> tuple[Target, list[tuple[str, bytes]]]:
    """Return the unified diff from the base text to what is there, for each managed file that differs."""
    target = resolve(site_packages=options.site_packages, python=options.python, writes=False)
    place = open_place(target)
    open_kind = settled(place)
    if open_kind is not None:
        raise UnrecoveredError(
            "interrupted",
            f"An interrupted {open_kind} is open in {busy(place)}, so there is nothing definite to compare.",
            remedy="run `overlay recover`, then this command again",
            paths=[busy(place)],
        )
    environment = read_environment(place, target, options.bundle)
    differences = []
    for path, digest in _base_by_path(environment).items():
        observed = environment.facts(path).observed
        if observed is not None and observed.entry.sha256 == digest:
            continue
        base = environment.base_text(path, digest)
        name = place.target(path)
        text = unified(base, observed.data if observed else b"", f"a/{name}", f"b/{name}" if observed else "/dev/null")
        differences.append((path, text))
    return target, differences


def file_status(environment: Environment, path: str) -> FileStatus:
    """Return what every command shows of one path."""
    facts = environment.facts(path)
    mine = facts.receipt
    # Without a receipt the stock text is known where RECORD states it, or only one is possible.
    stock = facts.recorded or (next(iter(facts.stock)) if len(facts.stock) == 1 else None)
    if mine is not None:
        stock = mine.belongs_to or (mine.stock.sha256 if mine.origin == receipt.BUNDLE else stock)
    return FileStatus(
        path,
        environment.model_of(path),
        facts.state,
        facts.digest,
        stock,
        None if mine is None else mine.overlay_sha256,
        None if mine is None else mine.stock.sha256,
        facts.origin,
        facts.said,
    )


def _with_receipt(environment: Environment, current: receipt.Receipt, options: Options) -> Status:
    target = environment.target
    if states.is_orphaned(current, target.version, environment.record):
        # The receipt says nothing about another release: its files are what that release says they are.
        own = replace(environment, receipt=None, _known={})
        files = tuple(file_status(own, file.path) for file in current.files)
        return Status(State.ORPHANED, target, current, files, (*target.notes, *_of_the_orphaned(environment, current)))
    files = tuple(file_status(environment, file.path) for file in current.files)
    notes = list(target.notes)
    for origin, said in (
        (receipt.ADOPTED, "adopted, so revert returns exactly what was found"),
        (receipt.OWN, "your own"),
    ):
        paths = [file.path for file in current.files if file.origin == origin]
        if paths:
            notes.append(f"{said}: {', '.join(paths)}")
    older = [file.path for file in current.files if file.made_from is not None]
    if older:
        notes.append(
            "adopted by an older version, which put the overlay of stock in the place of your text: "
            f"{', '.join(older)}; "
            "`overlay revert` returns it, `overlay install --adopt` makes an overlay from it"
        )
    overall = states.with_receipt((file.state for file in files), stale=_is_stale(environment, current))
    return Status(overall, target, current, files, tuple(notes))


def _of_the_orphaned(environment: Environment, current: receipt.Receipt) -> list[str]:
    target = environment.target
    notes = [f"the receipt is for transformers {current.target.version}, found {target.version or 'none'}"]
    for file in current.files:
        if file.origin != receipt.BUNDLE:
            found = environment.facts(file.path).digest or "nothing"
            notes.append(
                f"{file.path} was {file.origin}, on the text {file.stock.sha256[:12]}; now {found[:12]} is there"
            )
    return notes


def _with_hook(environment: Environment) -> Status:
    """Name the state of an environment whose overlays are served at import: the files themselves stay stock."""
    from .hook import installed
    from .hook.view import served_files

    target, notes = environment.target, list(environment.target.notes)
    hook = installed.load(environment.place)
    assert hook is not None
    served = () if target.version is None else served_files(target, Path(hook.bundle), hook.models)
    files = tuple(FileStatus(one.path, one.model, one.state, one.found, None, None) for one in served)
    notes.append(f"overlays are served at import by {environment.place.tree.root / HOOK}; the files stay stock")
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
    return Status(state, target, None, files, tuple(notes), mode="hook")


def _is_stale(environment: Environment, current: receipt.Receipt) -> bool:
    """Tell whether the bundle has another overlay now for a text that it overlaid."""
    if current.line not in catalog.lines(environment.bundle):
        return False
    manifest = catalog.load(current.line, environment.bundle)
    latest = {(file.path, file.stock_sha256): file.overlay_sha256 for file in manifest.files}
    return any(
        latest.get((file.path, file.stock.sha256), file.overlay_sha256) != file.overlay_sha256
        for file in current.files
        if file.origin == receipt.BUNDLE and not current.overlay_version.startswith("generated-")
    )


def _without_receipt(environment: Environment) -> Status:
    target, notes = environment.target, list(environment.target.notes)
    files = tuple(
        file for file in (file_status(environment, path) for path in environment.bundled())
        if file.state is not FileState.ABSENT
    )  # fmt: skip
    if any(file.state is FileState.OVERLAY for file in files):
        notes.append(
            "overlay text without a receipt: `overlay revert` restores stock, `overlay install` writes a new one"
        )
    overall = states.without_receipt((file.state for file in files), supported=bool(environment.manifests))
    return Status(overall, target, None, files, tuple(notes))


def _base_by_path(environment: Environment) -> dict[str, str]:
    """Return the hash of the text that `diff` compares every path with."""
    if environment.receipt is not None:
        return {file.path: file.stock.sha256 for file in environment.receipt.files}
    hashes = {}
    for path in environment.bundled():
        facts = environment.facts(path)
        known = {entry.stock_sha256 for entry in facts.entries}
        if facts.state is FileState.ABSENT:
            continue
        if facts.recorded in known:
            hashes[path] = str(facts.recorded)
        elif len(known) == 1:
            hashes[path] = known.pop()
    return hashes
