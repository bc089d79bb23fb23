"""The record of a run, one JSON line per finished slot, appended and synced: the truth that a resumed run starts from.

A slot's line holds the program itself. Files are written after the line and can be written again from it, so that a
kill at any moment loses no finished slot and leaves none twice. A line that a kill or a full disk cut off is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rocm_overlay.install.transaction.errors import BusyError, UnrecoveredError, UsageError, WriteError

NAME = ".synth-journal.jsonl"
SCHEMA = "amd-overlay.synth.journal/1"


class Journal:
    """The open journal of an output folder; one process at a time."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.folder = folder
        self.path = folder / NAME
        self.records: list[dict[str, Any]] = []
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise self._failed(error) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise BusyError(
                "busy", f"Another run works in {folder}.", remedy="wait for it, or choose another output_dir"
            ) from error
        self._read(fingerprint)

    def _read(self, fingerprint: dict[str, Any]) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.ftruncate(self._fd, whole)
        try:
            lines = [json.loads(line) for line in data[:whole].splitlines()]
        except ValueError as error:
            raise self._damaged(f"a line is not JSON: {error}") from error
        if not lines:
            self.append({"schema": SCHEMA, "settings": fingerprint})
            return
        if not isinstance(lines[0], dict) or lines[0].get("schema") != SCHEMA:
            raise self._damaged("it does not start as a journal of ours")
        if lines[0]["settings"] != fingerprint:
            changed = [name for name in fingerprint if lines[0]["settings"].get(name) != fingerprint[name]]
            raise UsageError(
                "other-run",
                f"{self.folder} holds a run with other settings ({', '.join(changed)}).",
                remedy="use the same settings to go on with it, or another output_dir",
                paths=[self.path],
            )
        self.records = lines[1:]

    def append(self, record: dict[str, Any]) -> None:
        """Write one line durably; after a failure the journal is as before.

        Raises:
            WriteError: the disk is full or fails.
        """
        data = json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n"
        before = os.fstat(self._fd).st_size
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(28, "No space left on device")
            os.fdatasync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, before)
            raise self._failed(error) from error
        if "slot" in record:
            self.records.append(record)

    def valid(self) -> Iterator[dict[str, Any]]:
        """Yield the records of accepted programs."""
        return (record for record in self.records if record["status"] == "valid")

    def write_program(self, record: dict[str, Any]) -> bool:
        """Write a record's file in one step unless it is there already; say whether it was written.

        Raises:
            WriteError: it cannot be written; what is there is left alone.
        """
        target = self.folder / f"{record['name']}.py"
        data = record["source"].encode("utf-8")
        try:
            if target.is_file() and target.read_bytes() == data:
                return False
            part = self.folder / f".{record['slot']}.part"
            try:
                with part.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(part, target)
            except OSError:
                part.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._failed(error) from error
        return True

    def close(self) -> None:
        """Let other processes use the folder."""
        os.close(self._fd)

    def _failed(self, error: OSError) -> WriteError:
        return WriteError(
            "cannot-write",
            f"{self.folder}: {error.strerror or error}. What was finished is kept.",
            remedy="make room or correct the permissions, then run the same command again",
            paths=[self.folder],
        )

    def _damaged(self, why: str) -> UnrecoveredError:
        return UnrecoveredError(
            "damaged-journal",
            f"{self.path}: {why}.",
            remedy="choose another output_dir, or remove the file",
            paths=[self.path],
        )
