"""The journals of an output folder, one per run: a line per finished slot, the truth that a resumed run starts from.

A slot's line holds the program itself. Files are written after the line and can be written again from it, so that a
kill at any moment loses no finished slot and leaves none twice. Several runs may share a folder: each has a journal of
its own, and what is taken is decided under one lock over all of them. Two runs with the same settings would write the
same slots, so the second is refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rocm_overlay import journal
from rocm_overlay.errors import BusyError, UnrecoveredError, WriteError
from rocm_overlay.files import remove_parts, write_atomic
from rocm_overlay.fingerprint import Fingerprint
from rocm_overlay.journal import OtherRunError

FOLDER = ".synth"
SCHEMA = "amd-overlay.synth.journal/3"


class Journal(journal.Journal):
    """The open journal of one run; one process at a time."""

    def __init__(self, folder: Path, key: Fingerprint, *, fresh: bool = False) -> None:
        """Open the journal of the run with this key; ``fresh`` forgets what it finished and removes its programs.

        Raises:
            BusyError: another process has it open.
            UnrecoveredError: it is damaged.
            WriteError: the folder cannot be written.
        """
        self.folder = folder
        path = folder / FOLDER / f"{key.digest[:12]}.jsonl"
        self._process_lock = FileLock(path.with_suffix(".lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._process_lock.acquire(timeout=0)
        except Timeout as error:
            raise BusyError(
                "busy",
                f"Another run with the same settings works in {folder}.",
                remedy="wait for it, or give this run another seed or another output_dir",
            ) from error
        except OSError as error:
            raise self._failed(error) from error
        try:
            super().__init__(path, SCHEMA, key.ingredients)
            if fresh:
                self._forget()
                super().__init__(path, SCHEMA, key.ingredients, fresh=True)
            remove_parts(folder, {f"{record['name']}.py" for record in self.valid()})
        except (journal.NotAJournalError, OtherRunError) as error:
            self.close()
            raise _damaged(path, error) from error
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    def _forget(self) -> None:
        """Remove the programs of this run that are as it wrote them."""
        for record in self.valid():
            path = self.folder / f"{record['name']}.py"
            if path.is_file() and path.read_bytes() == record["source"].encode("utf-8"):
                path.unlink()

    def others(self) -> Iterator[OtherRunError]:
        """Yield how runs of the same plan in this folder differ: they were made with other versions, or elsewhere."""
        mine = json.loads(self.path.read_bytes().partition(b"\n")[0])["settings"]
        for path in sorted((self.folder / FOLDER).glob("*.jsonl")):
            try:
                found = json.loads(path.read_bytes().partition(b"\n")[0])["settings"]
            except (ValueError, KeyError, TypeError):
                continue  # of another form, or begun this moment
            if found != mine and found.get("plan") == mine["plan"]:
                yield OtherRunError(journal.changes(found, mine))

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
        """Let other processes use the journal."""
        self._process_lock.release(force=True)

    def _failed(self, error: OSError) -> WriteError:
        return WriteError(
            "cannot-write",
            f"{self.folder}: {error.strerror or error}. What was finished is kept.",
            remedy="make room or correct the permissions, then run the same command again",
            paths=[self.folder],
        )


def _damaged(path: Path, error: object) -> UnrecoveredError:
    return UnrecoveredError(
        "damaged-journal",
        f"{path}: {error}.",
        remedy="choose another output_dir, or remove the file: its programs stay, and are not made again",
        paths=[path],
    )


class Index:
    """What is taken in a folder, by this run and by others: graphs, operator signatures, texts. Thread-safe."""

    def __init__(self, own: Journal | None = None) -> None:
        self._own = own
        self._lock = threading.RLock()
        self._taken: dict[str, str] = {}
        self._read: dict[Path, int] = {}
        self._file = FileLock(own.folder / FOLDER / "index.lock", thread_local=False) if own else None
        for record in own.valid() if own else ():
            self.note(record)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else takes anything in this folder meanwhile; what others took before is known."""
        with self._lock:
            if self._file is None or self._own is None:
                yield
                return
            with self._file:
                self._refresh(self._own)
                yield

    def _refresh(self, own: Journal) -> None:
        for path in sorted((own.folder / FOLDER).glob("*.jsonl")):
            if path == own.path:
                continue
            start = self._read.get(path, 0)
            with path.open("rb") as stream:
                stream.seek(start)
                data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = start + len(whole)
            try:
                records = [json.loads(line) for line in whole.splitlines()]
            except ValueError as error:
                raise _damaged(path, f"a line is not JSON: {error}") from error
            for record in records:
                if record.get("status") == "valid":
                    self.note(record)

    def note(self, record: dict[str, Any]) -> None:
        """Take in an accepted program."""
        for key in ("graph", "signature", "shape"):
            if record.get(key):
                self._taken.setdefault(record[key], record["name"])

    def holder(self, graph: str) -> str:
        """Return the name of the program of a computation, or ""."""
        with self._lock:
            return self._taken.get(graph, "")

    def twin(self, **keys: str) -> str:
        """Return "" or what of a program was taken before, and by which."""
        said = {"graph": "computation", "signature": "combination of operators", "shape": "text"}
        with self._lock:
            for what, key in keys.items():
                if key in self._taken:
                    return f"the {said[what]} is that of {self._taken[key]}"
        return ""
