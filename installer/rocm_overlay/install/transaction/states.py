"""States of a file and of an environment, derived from hashes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Protocol

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
    """The text of the installed release, as its RECORD says or, where it says nothing, as the bundle knows it."""
    UNSEEN = "unseen"
    """Stock, too, but of a text that no overlay was made for."""
    OVERLAY = "overlay"
    """The overlay that the receipt names, or without a receipt one of the bundle."""
    OVERLAY_OTHER = "overlay-other"
    """A text with our marker and another hash: of another version of ours, or ours with an edit."""
    BASE = "base"
    """The user's own text that the receipt promises to return: it is back already."""
    OTHER_STOCK = "other-stock"
    """The stock text of another release."""
    FOREIGN = "foreign"
    """Somebody's edit."""
    UNLISTED = "unlisted"
    """A path that the package's RECORD does not list although there is one: a repackager's tree, or an added file."""
    MISSING = "missing"
    ABSENT = "absent"
    """Neither on disk nor in the package's RECORD: this transformers does not have the model."""


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


BACK = frozenset({FileState.STOCK, FileState.UNSEEN, FileState.BASE})
"""What a file holds that is no overlay, and as it shall be after a revert."""


def with_receipt(files: Iterable[FileState], *, stale: bool) -> State:
    """Name the state of an environment whose receipt belongs to the installed release."""
    found = set(files)
    if found <= {FileState.OVERLAY}:
        return State.STALE if stale else State.APPLIED
    if found <= BACK:
        return State.WIPED
    if found <= {FileState.OVERLAY, *BACK}:
        return State.PARTIAL
    return State.DRIFTED


def without_receipt(files: Iterable[FileState], *, supported: bool) -> State:
    """Name the state of an environment that has no receipt. ``supported``: the bundle has overlays for this release."""
    found = set(files) - {FileState.ABSENT}
    if found - {FileState.STOCK, FileState.UNSEEN}:
        return State.FOREIGN
    return State.STOCK if supported and FileState.UNSEEN not in found else State.UNSUPPORTED


def is_orphaned(receipt: Receipt, version: str | None, record: Recorded) -> bool:
    """Tell whether a receipt belongs to another transformers than the one installed now.

    The release counts, and the stock hash that the package's own RECORD states for each file, where it states one.
    The RECORD as a whole does not: installers write different ones for the same wheel.
    """
    if receipt.target.version != version:
        return True
    return any(record.get(file.path) not in (None, file.belongs_to) for file in receipt.files)
