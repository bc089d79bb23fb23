"""Keep the finished parts of a resumable run: a header that names the run, then one JSON line per part.

A line is on disk before the next part begins, and only ever appended, so a kill loses the part that was running and no
other. A line that a kill or a full disk cut short is no line. Every line carries the time at which it was written: what
is used again is told with its date.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_AT = "at"
_SHOWN = 40  # characters of a value


class NotAJournalError(Exception):
    """The file is not a journal of this kind; it was left as it is."""


class OtherRunError(Exception):
    """The journal is that of a run with other settings.

    ``changes`` are those that differ: (dotted name, value in the journal, value of this run), None where one has none.
    """

    def __init__(self, changes: list[tuple[str, Any, Any]]) -> None:
        self.changes = changes
        shown = [f"{name} was {_short(was)}, is {_short(now)}" for name, was, now in changes[:3]]
        super().__init__("; ".join([*shown, *([f"and {len(changes) - 3} more"] if len(changes) > 3 else [])]))

    @property
    def names(self) -> list[str]:
        """The dotted names of the settings that differ."""
        return [name for name, _, _ in self.changes]


@dataclass(frozen=True)
class Reuse:
    """Parts of a run that an earlier one finished: ``parts`` of ``of``, the newest ``newest`` seconds after 1970."""

    parts: int
    of: int
    newest: float

    def text(self, what: str) -> str:
        """Say it: ``12 of 72 samples are from an earlier run of 2026-11-30 09:12; --fresh makes all anew``."""
        verb = "is" if self.parts == 1 else "are"
        when = datetime.fromtimestamp(self.newest).strftime("%Y-%m-%d %H:%M")
        return f"{self.parts} of {self.of} {what} {verb} from an earlier run of {when}; --fresh makes all anew"

    def as_json(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {"parts": self.parts, "of": self.of, "newest": stamp(self.newest)}


def stamp(seconds: float) -> str:
    """Return a time since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


class Journal:
    """The journal of one run. ``records`` are the parts that are finished and ``times`` when each was, in seconds since
    1970; ``resumed`` tells whether it was there.
    """

    def __init__(self, path: Path, schema: str, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Go on with a journal of the same settings, or begin one; ``fresh`` forgets what is there.

        Raises:
            NotAJournalError, OtherRunError: another file is there; with ``fresh`` no journal of this kind.
            OSError: it cannot be read or written.
        """
        self.path = path
        header = _line({"schema": schema, "settings": settings})
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        if header.startswith(data) and data != header:
            data = b""  # nothing, or a header that was cut short
        lines = _lines(data)
        if lines and fresh:
            _settings(lines[0], schema)
            lines = []
        self.resumed = bool(lines)
        if not lines:
            path.write_bytes(b"")
            self._write(header)
        else:
            differing = changes(_settings(lines[0], schema), json.loads(header)["settings"])
            if differing:
                raise OtherRunError(differing)
            os.truncate(path, data.rfind(b"\n") + 1)
        self.times = [float(line.pop(_AT, 0.0)) for line in lines[1:]]
        self.records = lines[1:]
        self._found = len(self.records)

    def reuse(self, of: int) -> Reuse | None:
        """Return what of ``of`` parts was there when the journal was opened; None where nothing was."""
        return Reuse(self._found, of, max(self.times[: self._found])) if self._found else None

    def append(self, record: dict[str, Any]) -> None:
        """Keep one finished part; when this returns it is on disk. After an OSError the journal is as before."""
        now = time.time()
        self._write(_line({**record, _AT: now}))
        self.records.append(record)
        self.times.append(now)

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


def _settings(found: Any, schema: str) -> dict[str, Any]:
    """Return the settings of a header; refuse what is none of this kind."""
    known = found.get("settings") if isinstance(found, dict) and found.get("schema") == schema else None
    if not isinstance(known, dict):
        raise NotAJournalError("it does not start as a journal of ours")
    return known


def changes(known: Mapping[str, Any], settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (dotted name, value there, value here) of every setting that differs; None where one side has none."""
    was, now = _flat(known), _flat(settings)
    return [(name, was.get(name), now.get(name)) for name in {**was, **now} if was.get(name) != now.get(name)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return every leaf of nested objects by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return found


def _short(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
