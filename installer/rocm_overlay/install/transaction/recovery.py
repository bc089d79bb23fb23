"""Brings an open transaction to one of its two ends. The one path for crashes, errors and signals.

An install goes back, a revert goes forward. Only files whose hash the journal knows are touched; anything else stops
recovery before it has changed a byte. Every step can be repeated, so recovery itself may be killed at any point.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UnrecoveredError
from . import blobs, journal
from .bytecode import purge
from .decode import MalformedError, dump, parse
from .entry import Entry, Observed
from .journal import INSTALL, Change, Journal
from .place import JOURNAL, RECEIPT, RESCUED, STATE, Place

COMPLETED = "completed"
BACK = "rolled back"
FORWARD = "rolled forward"
ORPHANED = "set aside"


@dataclass(frozen=True)
class Recovered:
    """What recovery did with the transaction ``id`` of kind install or revert."""

    id: str
    kind: str
    outcome: str
    paths: tuple[str, ...]
    rescued: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def recover(
    place: Place,
    version: str | None,
    second_source: blobs.SecondSource = blobs.no_second_source,
    *,
    force: bool = False,
) -> Recovered | None:
    """Finish an open transaction; None where there is none. The caller holds the lock.

    ``version`` is the release installed now, None when transformers is gone. With ``force`` texts that the journal
    does not know are copied to ``rescued/`` first. Raises UnrecoveredError when a person has to decide or act.
    """
    try:
        open_journal = journal.load(place)
        if open_journal is None:
            return None
        return _Recovery(place, open_journal, second_source).run(version, force)
    except OSError as error:
        raise UnrecoveredError(
            "recovery-failed",
            f"The open transaction in {place.tree.root / JOURNAL} could not be finished: {error}.",
            remedy="remove the cause (space, permissions), then run `overlay recover`",
            paths=[place.tree.root / JOURNAL],
        ) from error


def set_aside(place: Place, transaction: str, path: str, data: bytes) -> str:
    """Keep a text that is about to be replaced under ``rescued/<transaction>/``; return where."""
    name = f"{RESCUED}/{transaction}/{path}"
    place.tree.make(name.rpartition("/")[0], place.owner)
    place.put_state(name, data, transaction)
    return str(place.tree.root / name)


def write_receipt(place: Place, receipt: dict[str, object] | None, transaction: str) -> None:
    """Make the receipt on disk equal to ``receipt``."""
    if receipt is None:
        place.tree.remove(RECEIPT)
        place.tree.sync(STATE)
    else:
        place.put_state(RECEIPT, dump(receipt), transaction)


class _Recovery:
    def __init__(self, place: Place, open_journal: Journal, second_source: blobs.SecondSource) -> None:
        self.place = place
        self.journal = open_journal
        self.second_source = second_source
        self.found: dict[str, Observed | None] = {
            change.path: place.tree.observe(place.target(change.path)) for change in open_journal.changes
        }

    def run(self, version: str | None, force: bool) -> Recovered:
        if version != self.journal.version:
            return self._orphan(version)
        if self._complete():
            for change in self.journal.changes:
                purge(self.place, change.path)
            self._sync()
            return self._close(COMPLETED, self.journal.receipt_after)
        rescued = self._unknown(force)
        back = self.journal.kind == INSTALL
        changes = tuple(reversed(self.journal.changes)) if back else self.journal.changes
        if back:
            self._drop_temporaries()  # frees the space that putting texts back may need
        for change in changes:
            self._settle(change, change.before if back else change.after)
        self._sync()
        self._verify(back)
        receipt = self.journal.receipt_before if back else self.journal.receipt_after
        if self._receipt() != receipt:
            write_receipt(self.place, receipt, self.journal.id)
        return self._close(BACK if back else FORWARD, receipt, rescued)

    def _complete(self) -> bool:
        done = all(self._hash(change) == change.after.sha256 for change in self.journal.changes)
        return done and self._receipt() == self.journal.receipt_after

    def _receipt(self) -> dict[str, object] | None:
        data = self.place.tree.read(RECEIPT)
        if data is None:
            return None
        try:
            return parse(data, "receipt.json").raw
        except MalformedError:
            return {}  # equal to no receipt of ours, so that it is written anew

    def _hash(self, change: Change) -> str | None:
        found = self.found[change.path]
        return None if found is None else found.entry.sha256

    def _unknown(self, force: bool) -> tuple[str, ...]:
        """Stop at texts that are neither before nor after; with ``force`` keep copies of them and go on."""
        unknown = [
            change.path
            for change in self.journal.changes
            if self._hash(change) not in {None, change.after.sha256, change.before and change.before.sha256}
        ]
        if unknown and not force:
            paths = [self.place.tree.root / self.place.target(path) for path in unknown]
            raise UnrecoveredError(
                "unknown-text",
                f"An interrupted {self.journal.kind} cannot be finished: {len(unknown)} file(s) hold a text that is "
                f"neither the one before nor the one after it: {', '.join(map(str, paths))}. Nothing was changed.",
                remedy="run `overlay revert --force`: it copies these texts to .amd-overlay/rescued/ and then restores",
                paths=paths,
            )
        rescued = []
        for path in unknown:
            found = self.found[path]
            assert found is not None
            rescued.append(set_aside(self.place, self.journal.id, path, found.data))
        return tuple(rescued)

    def _settle(self, change: Change, wanted: Entry | None) -> None:
        """Make one file hold ``wanted``, from its staged copy or from the blobs."""
        if wanted is not None and self._hash(change) != wanted.sha256:
            tree, target = self.place.tree, self.place.target(change.path)
            folder = self.place.folder(change.path)
            staged = tree.observe(f"{folder}/{change.temporary}")
            if staged is None or staged.entry != wanted:
                tree.remove(f"{folder}/{change.temporary}")
                text = blobs.fetch(self.place, change.path, wanted.sha256, self.second_source)
                tree.stage(target, change.temporary, text, wanted)
            tree.publish(target, change.temporary)
        purge(self.place, change.path)

    def _sync(self) -> None:
        for folder in sorted({self.place.folder(change.path) for change in self.journal.changes}):
            self.place.tree.sync(folder)

    def _drop_temporaries(self) -> None:
        for folder in sorted({self.place.folder(change.path) for change in self.journal.changes}):
            self.place.tree.sweep(folder)

    def _verify(self, back: bool) -> None:
        for change in self.journal.changes:
            wanted = change.before if back else change.after
            found = self.place.tree.observe(self.place.target(change.path))
            if wanted is not None and (found is None or found.entry.sha256 != wanted.sha256):
                raise OSError(f"{self.place.target(change.path)} changed while it was being restored")

    def _orphan(self, version: str | None) -> Recovered:
        """The release has changed under the open transaction: nothing of it may be written any more."""
        ours = _overlay_hashes(self.journal)
        left = [path for path, found in self.found.items() if found is not None and found.entry.sha256 in ours]
        if left:
            paths = [self.place.tree.root / self.place.target(path) for path in left]
            raise UnrecoveredError(
                "release-changed",
                f"The open transaction belongs to transformers {self.journal.version}, found {version or 'none'}, and "
                f"{len(left)} file(s) still hold overlay text: {', '.join(map(str, paths))}. Nothing was changed.",
                remedy="reinstall transformers with your package manager (with its force-reinstall option), "
                "then run `overlay recover`",
                paths=paths,
            )
        kept = set_aside(self.place, self.journal.id, "txn.json", dump(self.journal.to_json()))
        write_receipt(self.place, None, self.journal.id)
        return self._close(ORPHANED, None, (kept,))

    def _close(self, outcome: str, receipt: dict[str, object] | None, rescued: tuple[str, ...] = ()) -> Recovered:
        self._drop_temporaries()
        journal.clear(self.place)
        paths = tuple(change.path for change in self.journal.changes)
        return Recovered(self.journal.id, self.journal.kind, outcome, paths, rescued, tidy(self.place, receipt))


def tidy(place: Place, receipt: dict[str, object] | None) -> tuple[str, ...]:
    """Remove stray temporary files and the blobs that ``receipt`` does not need. Failing costs disk space only."""
    try:
        for folder in sorted(place.state_folders()):
            place.tree.sweep(folder)
        blobs.collect(place, _hashes(receipt, "stock_sha256"))
    except OSError as error:
        return (f"tidying up {place.tree.root / STATE} failed: {error}",)
    return ()


def _overlay_hashes(open_journal: Journal) -> set[str]:
    return _hashes(open_journal.receipt_before, "overlay_sha256") | _hashes(
        open_journal.receipt_after, "overlay_sha256"
    )


def _hashes(receipt: dict[str, object] | None, key: str) -> set[str]:
    files = receipt.get("files") if receipt is not None else None
    return {str(file[key]) for file in files if key in file} if isinstance(files, list) else set()
