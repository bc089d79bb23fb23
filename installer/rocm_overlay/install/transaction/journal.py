"""The journal of an open transaction (schema amd-overlay.txn/1). Its existence is the commit point."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UnrecoveredError
from .decode import MODULE_PATH, MalformedError, Reader, dump, parse
from .entry import Entry
from .fs import TEMPORARY
from .place import JOURNAL, STATE, Place

SCHEMA = "amd-overlay.txn/1"
INSTALL = "install"
REVERT = "revert"


@dataclass(frozen=True)
class Change:
    """One replacement. ``before`` is None for a file that was missing."""

    path: str
    before: Entry | None
    after: Entry
    temporary: str

    def to_json(self) -> dict[str, object]:
        return {
            "path": self.path,
            "before": None if self.before is None else self.before.to_json(),
            "after": self.after.to_json(),
            "temporary": self.temporary,
        }

    @classmethod
    def from_json(cls, reader: Reader) -> Change:
        before = None if reader.get("before") is None else Entry.from_json(reader.child("before"))
        after = Entry.from_json(reader.child("after"))
        return cls(reader.matching("path", MODULE_PATH), before, after, reader.matching("temporary", TEMPORARY))


@dataclass(frozen=True)
class Journal:
    """Everything recovery needs, with the blobs. Receipts are kept as JSON objects; None means no receipt."""

    id: str
    kind: str
    package: str
    version: str
    created: str
    changes: tuple[Change, ...]
    receipt_before: dict[str, object] | None
    receipt_after: dict[str, object] | None

    def to_json(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "id": self.id,
            "kind": self.kind,
            "package": self.package,
            "version": self.version,
            "created": self.created,
            "changes": [change.to_json() for change in self.changes],
            "receipt_before": self.receipt_before,
            "receipt_after": self.receipt_after,
        }

    @classmethod
    def from_json(cls, reader: Reader) -> Journal:
        """Read a journal. Raises MalformedError, also for a schema of another version."""
        if reader.text("schema") != SCHEMA:
            raise MalformedError(f"{reader.place('schema')}: found {reader.text('schema')}, expected {SCHEMA}")
        if reader.text("kind") not in (INSTALL, REVERT):
            raise MalformedError(f"{reader.place('kind')}: found {reader.text('kind')!r}")
        changes = tuple(Change.from_json(change) for change in reader.objects("changes"))
        if reader.text("kind") == INSTALL and any(change.before is None for change in changes):
            raise MalformedError(f"{reader.place('changes')}: an install replaces files, it never adds one")
        return cls(
            id=reader.text("id"),
            kind=reader.text("kind"),
            package=reader.text("package"),
            version=reader.text("version"),
            created=reader.text("created"),
            changes=changes,
            receipt_before=_optional(reader, "receipt_before"),
            receipt_after=_optional(reader, "receipt_after"),
        )


def is_open(place: Place) -> bool:
    """Tell whether a transaction was left open."""
    return JOURNAL.rpartition("/")[2] in place.tree.names(STATE)


def load(place: Place) -> Journal | None:
    """Return the open journal, None where there is none. Raises UnrecoveredError when it cannot be read."""
    data = place.tree.read(JOURNAL)
    if data is None:
        return None
    path = place.tree.root / JOURNAL
    try:
        return Journal.from_json(parse(data, "txn.json"))
    except MalformedError as error:
        raise UnrecoveredError(
            "journal-unreadable",
            f"{path} is not a journal that this version reads: {error}.",
            remedy="upgrade transformers-rocm-overlay if a newer version wrote it; otherwise reinstall transformers "
            f"and delete {place.tree.root / STATE}",
            paths=[path],
        ) from error


def commit(place: Place, journal: Journal) -> None:
    """Publish the journal durably. FileExistsError where another transaction is open."""
    place.put_state(JOURNAL, dump(journal.to_json()), journal.id, new=True)


def clear(place: Place) -> None:
    """Close the transaction."""
    place.tree.remove(JOURNAL)
    place.tree.sync(STATE)


def _optional(reader: Reader, key: str) -> dict[str, object] | None:
    return None if reader.get(key) is None else reader.child(key).raw
