"""What a run that may be killed has finished: a header that names the run, then one JSON line per finished part.

A line is on disk before the next part begins, and only ever appended, so a kill loses the part that was running and no
other. A line that a kill or a full disk cut short is no line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class NotAJournalError(Exception):
    """The file is not a journal of this kind; it was left as it is."""


class OtherRunError(Exception):
    """The journal is that of a run with other settings; ``names`` are those that differ."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


class Journal:
    """The journal of one run. ``records`` are the parts that are finished, ``resumed`` tells whether it was there."""

    def __init__(self, path: Path, schema: str, settings: Mapping[str, Any]) -> None:
        """Go on with a journal of the same settings, or begin one.

        Raises:
            NotAJournalError, OtherRunError: another file is there.
            OSError: it cannot be read or written.
        """
        self.path = path
        header = _line({"schema": schema, "settings": settings})
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        if header.startswith(data) and data != header:
            data = b""  # nothing, or a header that was cut short
        lines = _lines(data)
        self.resumed = bool(lines)
        if not lines:
            path.write_bytes(b"")
            self._write(header)
        else:
            _compare(lines[0], **json.loads(header))
            os.truncate(path, data.rfind(b"\n") + 1)
        self.records = lines[1:]

    def append(self, record: dict[str, Any]) -> None:
        """Keep one finished part; when this returns it is on disk. After an OSError the journal is as before."""
        self._write(_line(record))
        self.records.append(record)

    def _write(self, data: bytes) -> None:
        with self.path.open("ab", buffering=0) as stream:
            before = os.fstat(stream.fileno()).st_size
            try:
                if stream.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(stream.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(stream.fileno(), before)
                raise


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _lines(data: bytes) -> list[dict[str, Any]]:
    """Return the values of all whole lines."""
    whole = data[: data.rfind(b"\n") + 1]
    if data and not whole:
        raise NotAJournalError("it has no whole line")
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise NotAJournalError(f"a line is not JSON: {error}") from None


def _compare(found: Any, schema: str, settings: dict[str, Any]) -> None:
    """Refuse a journal whose header is not the one of this run."""
    known = found.get("settings") if isinstance(found, dict) and found.get("schema") == schema else None
    if not isinstance(known, dict):
        raise NotAJournalError("it does not start as a journal of ours")
    changed = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
    if changed:
        raise OtherRunError(changed)
