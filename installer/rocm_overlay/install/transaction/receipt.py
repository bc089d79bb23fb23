"""What is applied now, and everything needed to put stock back without the bundle (schema amd-overlay.receipt/1)."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UnrecoveredError
from .decode import MODULE_PATH, MalformedError, Reader, parse
from .entry import Entry, is_sha256
from .place import RECEIPT, Place

SCHEMA = "amd-overlay.receipt/1"
BUNDLE, GENERATED, ADOPTED, OWN = "bundle", "generated", "adopted", "own"
ORIGINS = (BUNDLE, GENERATED, ADOPTED, OWN)
"""Where an overlay comes from: the bundle; a folder of `overlay gen`; made at install from an edited text; the user's
own replacement.
"""


@dataclass(frozen=True)
class ReceiptFile:
    """One overlaid file: the entry that revert restores, which is what the overlay was made from, and the overlay.

    ``recorded`` is what the package's RECORD said about the path at the install, where ``stock`` may be a text of the
    user's. ``made_from`` stands in receipts of versions before generator 3 alone: they put the overlay of that stock
    text in the place of an edited one.
    """

    path: str
    model: str
    stock: Entry
    overlay_sha256: str
    had_pyc: tuple[str, ...]
    made_from: str | None = None
    origin: str = BUNDLE
    recorded: str | None = None

    @property
    def belongs_to(self) -> str | None:
        """The stock hash by which a RECORD of the same release is known; None where it had no line for the path."""
        if self.made_from is not None:
            return self.made_from
        return self.stock.sha256 if self.origin == BUNDLE else self.recorded

    def to_json(self) -> dict[str, object]:
        stock = self.stock.to_json()
        return {
            **{key: value for key, value in stock.items() if key != "sha256"},
            "path": self.path,
            "model": self.model,
            "stock_sha256": self.stock.sha256,
            "overlay_sha256": self.overlay_sha256,
            "had_pyc": list(self.had_pyc),
            **({"made_from": self.made_from} if self.made_from is not None else {}),
            **({} if self.origin == BUNDLE else {"origin": self.origin, "recorded_sha256": self.recorded}),
        }

    @classmethod
    def from_json(cls, reader: Reader) -> ReceiptFile:
        overlay = reader.text("overlay_sha256")
        if not is_sha256(overlay):
            raise MalformedError(f"{reader.place('overlay_sha256')}: not a sha256")
        made_from = reader.text("made_from") if "made_from" in reader.raw else None
        origin = reader.text("origin") if "origin" in reader.raw else BUNDLE
        recorded = reader.optional_text("recorded_sha256") if origin != BUNDLE else None
        if origin not in ORIGINS:
            raise MalformedError(f"{reader.place('origin')}: found {origin!r}, expected one of {', '.join(ORIGINS)}")
        for key, digest in (("made_from", made_from), ("recorded_sha256", recorded)):
            if digest is not None and not is_sha256(digest):
                raise MalformedError(f"{reader.place(key)}: not a sha256")
        stock = Reader({**reader.raw, "sha256": reader.text("stock_sha256")}, reader.where)
        return cls(
            reader.matching("path", MODULE_PATH),
            reader.text("model"),
            Entry.from_json(stock),
            overlay,
            reader.texts("had_pyc"),
            made_from,
            origin,
            recorded,
        )


@dataclass(frozen=True)
class ReceiptTarget:
    """The environment at the time of the install."""

    executable: str | None
    prefix: str | None
    purelib: str
    dist_info: str | None
    version: str
    record_sha256: str | None
    installer: str | None
    kind: str

    def to_json(self) -> dict[str, object]:
        return dict(self.__dict__)

    @classmethod
    def from_json(cls, reader: Reader) -> ReceiptTarget:
        return cls(
            executable=reader.optional_text("executable"),
            prefix=reader.optional_text("prefix"),
            purelib=reader.text("purelib"),
            dist_info=reader.optional_text("dist_info"),
            version=reader.text("version"),
            record_sha256=reader.optional_text("record_sha256"),
            installer=reader.optional_text("installer"),
            kind=reader.text("kind"),
        )


@dataclass(frozen=True)
class Receipt:
    """The full desired set of one environment."""

    line: str
    overlay_version: str
    manifest_sha256: str
    tool_version: str
    time: str
    target: ReceiptTarget
    files: tuple[ReceiptFile, ...]

    def by_path(self) -> dict[str, ReceiptFile]:
        return {file.path: file for file in self.files}

    def to_json(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "overlay": {"name": "transformers-rocm-overlay", "line": self.line, "version": self.overlay_version},
            "manifest_sha256": self.manifest_sha256,
            "tool_version": self.tool_version,
            "time": self.time,
            "target": self.target.to_json(),
            "mode": "files",
            "files": [file.to_json() for file in self.files],
        }

    @classmethod
    def from_json(cls, reader: Reader) -> Receipt:
        """Read a receipt. Raises MalformedError, also for a schema of another version."""
        if reader.text("schema") != SCHEMA:
            raise MalformedError(f"{reader.place('schema')}: found {reader.text('schema')}, expected {SCHEMA}")
        overlay = reader.child("overlay")
        return cls(
            line=overlay.text("line"),
            overlay_version=overlay.text("version"),
            manifest_sha256=reader.text("manifest_sha256"),
            tool_version=reader.text("tool_version"),
            time=reader.text("time"),
            target=ReceiptTarget.from_json(reader.child("target")),
            files=tuple(ReceiptFile.from_json(file) for file in reader.objects("files")),
        )


def load(place: Place) -> Receipt | None:
    """Return the receipt of an environment, None where nothing is applied. Raises UnrecoveredError when unreadable."""
    data = place.tree.read(RECEIPT)
    if data is None:
        return None
    path = place.tree.root / RECEIPT
    try:
        return Receipt.from_json(parse(data, "receipt.json"))
    except MalformedError as error:
        raise UnrecoveredError(
            "receipt-unreadable",
            f"{path} is not a receipt that this version reads: {error}.",
            remedy="run `overlay revert --force`: it sets the receipt aside and restores stock text from the bundle, "
            "or upgrade transformers-rocm-overlay if a newer version wrote it",
            paths=[path],
        ) from error
