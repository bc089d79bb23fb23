"""Writing a file of the user's: whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(target: Path, data: bytes, mode: int | None = None) -> None:
    """Write beside the target, sync, rename: a reader sees the old file or the new one, never a part.

    ``mode`` None leaves the mode to the umask. Raises OSError; the target is then as it was and nothing is beside it.
    """
    part = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            if mode is not None:
                os.fchmod(stream.fileno(), mode)  # whatever the umask
            os.fsync(stream.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
