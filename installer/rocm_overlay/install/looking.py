"""How commands that only look meet an open transaction: they write nothing, and wait for a second at most."""

from __future__ import annotations

import time
from pathlib import Path

from ..errors import BusyError
from .transaction import journal
from .transaction.place import JOURNAL, LOCK, Place

PATIENCE_SECONDS = 1.0
_STEP_SECONDS = 0.05


def busy(place: Place) -> Path:
    """Return the path of the journal of an open transaction."""
    return place.tree.root / JOURNAL


def settled(place: Place) -> str | None:
    """Return None where no transaction is open, else its kind (install or revert): its process was stopped.

    One whose process is still at work is given a second to end. Raises BusyError, which names that process, after it.
    """
    end = time.monotonic() + PATIENCE_SECONDS
    while journal.is_open(place):
        holder = _holder(place.tree.root / LOCK)
        if holder is None:
            return _kind(place)
        if time.monotonic() > end:
            raise BusyError(
                "lock-busy",
                f"{place.tree.root / LOCK} is held by {holder}, which is changing the files now.",
                remedy="wait for that command to end, then run this one again",
                paths=[place.tree.root / LOCK],
            )
        time.sleep(_STEP_SECONDS)
    return None


def _kind(place: Place) -> str:
    """Return what was interrupted; one that cannot be read is left to `overlay recover` to complain about."""
    from ..errors import UnrecoveredError

    try:
        found = journal.load(place)
    except UnrecoveredError:
        return "transaction"
    return "transaction" if found is None else found.kind


def _holder(lock: Path) -> str | None:
    """Return who holds the lock, None where nobody does. Asking takes a shared lock for a moment, and never waits."""
    import fcntl  # here: not every system has it

    try:
        status = lock.stat()
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return _process(status.st_ino)
    except OSError:
        return None
    return None


def _process(inode: int) -> str:
    """Name the process that the kernel lists as the holder of a lock on this inode."""
    try:
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            words = line.split()
            if len(words) >= 6 and words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
                command = Path(f"/proc/{words[4]}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                return f"process {words[4]} ({command.strip()[:80]})"
    except OSError:
        pass
    return "another overlay command"
