"""`overlay status --deep`: every file of the package against its own RECORD."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .foreign import added_files
from .record import Record
from .target import Target
from .transaction.entry import sha256


@dataclass(frozen=True)
class Deep:
    """What a full comparison found. ``recorded`` is False where the distribution has no RECORD to compare with."""

    recorded: bool
    checked: int
    modified: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    overlaid: tuple[str, ...] = ()
    """Files that differ from RECORD because they are our overlays, as the receipt says."""

    @property
    def clean(self) -> bool:
        """Tell whether nothing but our overlays differs."""
        return self.recorded and not (self.modified or self.missing or self.unreadable or self.added)


def verify(target: Target, record: Record, ours: Collection[str]) -> Deep:
    """Hash every file that RECORD lists below the package; ``ours`` are overlays that are as they shall be."""
    if not record.present:
        return Deep(False, 0)
    modified: list[str] = []
    missing: list[str] = []
    unreadable: list[str] = []
    overlaid: list[str] = []
    for path in sorted(record.digests):
        if path.startswith("../"):
            continue
        try:
            found = sha256((target.package / path).read_bytes())
        except FileNotFoundError:
            missing.append(path)
        except OSError:
            unreadable.append(path)
        else:
            if found != record.get(path):
                (overlaid if path in ours else modified).append(path)
    added = added_files(target, record)
    return Deep(
        True, len(record.digests), tuple(modified), tuple(missing), tuple(unreadable), tuple(added), tuple(overlaid)
    )
