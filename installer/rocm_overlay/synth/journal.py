"""The journal of an output folder, one line per finished slot: the truth that a resumed run starts from.

A slot's line holds the program itself. Files are written after the line and can be written again from it, so that a
kill at any moment loses no finished slot and leaves none twice. The folder is locked: a second run in it would write
the same slots.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rocm_overlay import journal
from rocm_overlay.files import write_atomic
from rocm_overlay.install.transaction.errors import BusyError, UnrecoveredError, UsageError, WriteError

NAME = ".synth-journal.jsonl"
SCHEMA = "amd-overlay.synth.journal/1"


class Journal(journal.Journal):
    """The open journal of an output folder; one process at a time."""

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.folder = folder
        path = folder / NAME
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._open(path, fingerprint)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, fingerprint: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError(
                "busy", f"Another run works in {self.folder}.", remedy="wait for it, or choose another output_dir"
            ) from error
        try:
            super().__init__(path, SCHEMA, fingerprint)
        except journal.NotAJournalError as error:
            raise UnrecoveredError(
                "damaged-journal",
                f"{path}: {error}.",
                remedy="choose another output_dir, or remove the file",
                paths=[path],
            ) from error
        except journal.OtherRunError as error:
            raise UsageError(
                "other-run",
                f"{self.folder} holds a run with other settings ({error}).",
                remedy="use the same settings to go on with it, or another output_dir",
                paths=[path],
            ) from error
        except OSError as error:
            raise self._failed(error) from error

    def keep(self, record: dict[str, Any]) -> None:
        """Write one line durably; after a failure the journal is as before.

        Raises:
            WriteError: the disk is full or fails.
        """
        try:
            self.append(record)
        except OSError as error:
            raise self._failed(error) from error

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
            write_atomic(target, data)
        except OSError as error:
            raise self._failed(error) from error
        return True

    def close(self) -> None:
        """Let other processes use the folder."""
        os.close(self._lock)

    def _failed(self, error: OSError) -> WriteError:
        return WriteError(
            "cannot-write",
            f"{self.folder}: {error.strerror or error}. What was finished is kept.",
            remedy="make room or correct the permissions, then run the same command again",
            paths=[self.folder],
        )
