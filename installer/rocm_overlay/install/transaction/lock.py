"""One transaction at a time per environment."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ...errors import BusyError, WriteError
from .place import LOCK, Place


@contextlib.contextmanager
def locked(place: Place, seconds: float) -> Iterator[None]:
    """Hold the environment's lock. Raises BusyError after ``seconds``, WriteError where no lock can be made.

    The kernel frees the lock when a process dies, so a stale one cannot exist; the file itself stays for ever.
    """
    import filelock

    path = place.tree.root / LOCK
    try:
        place.prepare()
        lock = filelock.FileLock(path, timeout=seconds, mode=0o644)
        lock.acquire()
    except filelock.Timeout as error:
        raise BusyError(
            "lock-busy",
            f"{path} is held by another overlay command, also after waiting {seconds:g} s.",
            remedy="wait for the other command to end, then run this one again",
            paths=[path],
        ) from error
    except OSError as error:
        raise cannot_write(place, path, error) from error
    try:
        yield
    finally:
        lock.release()


def cannot_write(place: Place, path: Path, error: OSError) -> WriteError:
    """Explain a failed write: where, why, whose it is, and that nothing was changed."""
    import shutil  # here: a start without trouble need not pay for it

    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(place.tree.root).free
        hint = "free some space or inodes on that file system (a few MiB are enough), then run the command again"
        detail = f"{free // 1024} KiB are free"
        message = f"Cannot write in {path}: {reason}; {detail}. Nothing was changed."
        return WriteError("no-space", message, remedy=hint, paths=[path])
    holder, owner = _holder(path)
    detail = f"{holder} belongs to uid {owner}, this process is uid {os.geteuid()}"
    return WriteError(
        "cannot-write",
        f"Cannot write in {path}: {reason}; {detail}. Nothing was changed.",
        remedy=f"run the command as the owner of {holder} on a writable file system, or make a virtual "
        "environment of your own and install transformers there",
        paths=[path],
    )


def _holder(path: Path) -> tuple[Path, int]:
    """Return what refused a write to ``path``, and its owner: the nearest on the way up that can be looked at."""
    while True:
        try:
            return path, path.lstat().st_uid
        except OSError:
            if path == path.parent:
                raise
            path = path.parent
