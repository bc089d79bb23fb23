"""Names for what a file and an environment are in, decided from hashes alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from enum import Enum
from typing import Protocol

from .entry import Observed
from .receipt import Receipt

MARKER = b"# amd-overlay/"
"""How the first line of every overlay begins; `MARKER_LINE` is what this version reads and writes there."""
MARKER_LINE = re.compile(
    rb"# amd-overlay/1 base=sha256:(?P<base>[0-9a-f]{64}) "
    rb"generator=(?P<generator>\d{1,6}) recipes=(?P<recipes>[0-9a-f]{12}) "
)


class Recorded(Protocol):
    """What is needed of a RECORD."""

    def get(self, path: str) -> str | None: ...


class FileState(str, Enum):
    """What one managed path holds."""

    STOCK = "stock"
    OVERLAY = "overlay"
    OVERLAY_OTHER = "overlay-other"
    FOREIGN = "foreign"
    MISSING = "missing"


class State(str, Enum):
    """What an environment is in."""

    STOCK = "STOCK"
    APPLIED = "APPLIED"
    STALE = "STALE"
    PARTIAL = "PARTIAL"
    DRIFTED = "DRIFTED"
    WIPED = "WIPED"
    ORPHANED = "ORPHANED"
    INTERRUPTED = "INTERRUPTED"
    FOREIGN = "FOREIGN"
    UNSUPPORTED = "UNSUPPORTED"


def classify(observed: Observed | None, stock: Collection[str], overlay: Collection[str]) -> FileState:
    """Classify a file by the stock and overlay hashes that are right for it in this release.

    A text with our marker but another hash is overlay-other: of another version of ours, or ours with an edit.
    """
    if observed is None:
        return FileState.MISSING
    if observed.entry.sha256 in stock:
        return FileState.STOCK
    if observed.entry.sha256 in overlay:
        return FileState.OVERLAY
    return FileState.OVERLAY_OTHER if observed.data.startswith(MARKER) else FileState.FOREIGN


def with_receipt(files: Iterable[FileState], *, stale: bool) -> State:
    """Name the state of an environment whose receipt belongs to the installed release."""
    found = set(files)
    if found <= {FileState.OVERLAY}:
        return State.STALE if stale else State.APPLIED
    if found == {FileState.STOCK}:
        return State.WIPED
    if found <= {FileState.OVERLAY, FileState.STOCK}:
        return State.PARTIAL
    return State.DRIFTED


def without_receipt(files: Iterable[FileState], *, supported: bool) -> State:
    """Name the state of an environment that has no receipt."""
    found = set(files)
    if found - {FileState.STOCK, FileState.MISSING}:
        return State.FOREIGN
    return State.STOCK if supported else State.UNSUPPORTED


def is_orphaned(receipt: Receipt, version: str | None, record: Recorded) -> bool:
    """Tell whether a receipt belongs to another transformers than the one installed now.

    The release counts, and the stock hash that the package's own RECORD states for each file, where it states one.
    The RECORD as a whole does not: installers write different ones for the same wheel.
    """
    if receipt.target.version != version:
        return True
    return any(record.get(file.path) not in (None, file.made_from or file.stock.sha256) for file in receipt.files)
