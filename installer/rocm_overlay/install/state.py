"""What a file of transformers is, decided once from everything that is known about it.

Every command asks here, so that no two of them can tell different stories about the same file: `facts` reads a path
once, `FileState` names what it holds, and the tables below say what that means for each command.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import TargetError
from . import catalog
from .catalog import FileEntry, Manifest
from .record import Record
from .target import Target
from .transaction import blobs, receipt
from .transaction.entry import Observed
from .transaction.place import Place
from .transaction.receipt import Receipt, ReceiptFile
from .transaction.states import BACK, MARKER, FileState

StockText = Callable[[str, str], "bytes | None"]
EDITED = frozenset(
    {FileState.FOREIGN, FileState.OVERLAY_OTHER, FileState.OTHER_STOCK, FileState.UNLISTED, FileState.BASE}
)
"""States in which a file holds a text that install does not replace unasked."""
ADOPTABLE = EDITED - {FileState.OVERLAY_OTHER}
"""Those of them that `install --adopt` takes as the base of an overlay."""
FINDINGS = {
    **dict.fromkeys(EDITED, "foreign-files"),
    FileState.UNLISTED: "unlisted-files",
    FileState.MISSING: "damaged-install",
    FileState.UNSEEN: "unsupported-text",
}
"""What doctor calls a file that no receipt speaks of. Every other state is in order."""
_SAID = {
    FileState.STOCK: "stock",
    FileState.UNSEEN: "stock, of a text that no overlay was made for",
    FileState.OVERLAY: "an overlay",
    FileState.OVERLAY_OTHER: "an overlay of another version, or one that was edited",
    FileState.BASE: "the text that revert returns, which is not stock",
    FileState.FOREIGN: "neither the stock text nor ours",
    FileState.UNLISTED: "not listed in the package's RECORD, and of a text that nobody knows",
    FileState.MISSING: "missing",
    FileState.ABSENT: "not part of this transformers",
}


@dataclass(frozen=True)
class Facts:
    """Everything known about one path: what is there, and what RECORD, receipt and bundle say.

    ``recorded`` is the hash in RECORD, ``listed`` whether RECORD has the path (None: there is no RECORD). ``receipt``
    is the receipt's file, where it speaks of this release. ``entries`` are the bundle's overlays of the installed line.
    """

    path: str
    observed: Observed | None
    recorded: str | None
    listed: bool | None
    receipt: ReceiptFile | None
    entries: tuple[FileEntry, ...]
    elsewhere: FileEntry | None = None
    """An overlay of any line for exactly this text, where it is not the text of the installed release."""

    @property
    def digest(self) -> str | None:
        """The sha256 of what is there, None where nothing is."""
        return None if self.observed is None else self.observed.entry.sha256

    @property
    def entry(self) -> FileEntry | None:
        """The bundle's overlay for exactly the text that is there."""
        return next((one for one in self.entries if one.stock_sha256 == self.digest), self.elsewhere)

    @property
    def shipped(self) -> FileEntry | None:
        """The bundle's overlay that is there, where one is."""
        return next((one for one in self.entries if one.overlay_sha256 == self.digest and one.edits), None)

    @property
    def stock(self) -> frozenset[str]:
        """The hashes that are stock here: RECORD decides; where it says nothing, the texts that the bundle knows."""
        known = frozenset(one.stock_sha256 for one in self.entries)
        return known if self.recorded is None else frozenset({self.recorded})

    @property
    def origin(self) -> str | None:
        """Where the overlay that is there comes from; None where there is none."""
        if self.state is not FileState.OVERLAY:
            return None
        return self.receipt.origin if self.receipt is not None else receipt.BUNDLE

    @property
    def state(self) -> FileState:
        """What the file is."""
        if self.observed is None:
            return FileState.ABSENT if self.listed is False and self.receipt is None else FileState.MISSING
        if self.receipt is not None and self.digest == self.receipt.overlay_sha256:
            return FileState.OVERLAY
        if self.receipt is None and self.listed is False and not self.observed.data.startswith(MARKER):
            return FileState.UNLISTED
        if self.digest in self.stock:
            return FileState.STOCK if self.entry is not None or not self.entries else FileState.UNSEEN
        if self.receipt is not None and self.digest == self.receipt.stock.sha256:
            return FileState.BASE
        if self.receipt is None and self.shipped is not None and self.recorded in (None, self.shipped.stock_sha256):
            return FileState.OVERLAY
        if self.observed.data.startswith(MARKER):
            return FileState.OVERLAY_OTHER
        return FileState.FOREIGN if self.entry is None else FileState.OTHER_STOCK

    @property
    def said(self) -> str:
        """What the file is, in words that fit after "is"."""
        if self.state is FileState.UNLISTED and self.entry is not None:
            return "the stock text, but the package's RECORD does not list it"
        if self.state is FileState.OTHER_STOCK and self.entry is not None:
            return f"the stock text of another release ({self.entry.releases[0]})"
        return _SAID[self.state]


@dataclass(frozen=True)
class Environment:
    """One installed transformers with what is known about it. ``receipt`` is None where it belongs to another release;
    ``receipt_on_disk`` is what is there in any case.
    """

    place: Place
    target: Target
    record: Record
    receipt: Receipt | None
    receipt_on_disk: dict[str, object] | None
    bundle: Path
    manifests: tuple[Manifest, ...]
    """The bundle's, for the installed line; none where it has none, or is damaged and not needed."""
    _known: dict[str, Facts] = field(default_factory=dict, repr=False, compare=False)

    def stock_text(self, path: str, digest: str) -> bytes | None:
        """Return a stock text by hash from the bundle, None where it is not there."""
        return catalog.stock_text(path, digest, self.bundle)

    def base_text(self, path: str, digest: str) -> bytes:
        """Return a text that revert may restore, from the state folder or the bundle. Raises UnrecoveredError."""
        return blobs.fetch(self.place, path, digest, self.stock_text)

    def paths(self) -> Iterator[str]:
        """Yield every managed path in order: what the receipt lists, or without a receipt what the bundle has."""
        if self.receipt is not None:
            yield from sorted(self.receipt.by_path())
        else:
            yield from self.bundled()

    def bundled(self) -> list[str]:
        """Return the paths that the bundle has overlays for, in the installed line."""
        return sorted({file.path for manifest in self.manifests for file in manifest.files})

    def model_of(self, path: str) -> str:
        """Return the name of the model whose file a path is."""
        return PurePosixPath(path).parent.name

    def facts(self, path: str) -> Facts:
        """Return what is known about a path. It is read once. Raises TargetError where it cannot be read safely."""
        if path not in self._known:
            self._known[path] = self._look(path)
        return self._known[path]

    def _look(self, path: str) -> Facts:
        found = Facts(
            path=path,
            observed=self._observe(path),
            recorded=self.record.get(path),
            listed=self.record.lists(path),
            receipt=None if self.receipt is None else self.receipt.by_path().get(path),
            entries=tuple(file for manifest in self.manifests for file in manifest.files if file.path == path),
        )
        strange = found.state in (FileState.FOREIGN, FileState.UNLISTED, FileState.STOCK) and found.entry is None
        if strange and found.digest is not None:
            return Facts(**{**vars(found), "elsewhere": catalog.find(path, found.digest, self.bundle)})
        return found

    def _observe(self, path: str) -> Observed | None:
        try:
            return self.place.tree.observe(self.place.target(path))
        except OSError as error:
            full = self.target.package / path
            linked = error.errno in (errno.ENOTDIR, errno.ELOOP)
            reason = "a folder on the way to it is a link" if linked else error.strerror or str(error)
            raise TargetError(
                "linked-folder" if linked else "unreadable",
                f"{full} cannot be handled: {reason}, expected a file in a folder of its own. Nothing was written.",
                remedy="install transformers as ordinary files that you may read, or leave this model out (--models)",
                paths=[full],
            ) from error


__all__ = ["ADOPTABLE", "BACK", "EDITED", "FINDINGS", "Environment", "Facts"]
