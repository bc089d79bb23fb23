"""`overlay synth merge`: the programs of several folders in one, each computation once. Folders stay as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rocm_overlay.errors import UsageError
from rocm_overlay.executor import Executor
from rocm_overlay.fingerprint import Fingerprint

from . import settings as settings_
from .examine import Program, Rejected, examine, read_source
from .journal import FOLDER, Index, Journal
from .pipeline import signature
from .sampler.plan import class_name
from .sandbox.pool import job
from .settings import Settings


@dataclass
class Merged:
    """What came of a merge: how many programs the folder holds, how many were written, and what was not, with why."""

    total: int = 0
    written: int = 0
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "programs": self.total,
            "written": self.written,
            "duplicates": [{"path": path, "of": name} for path, name in self.duplicates],
            "left_out": [{"path": path, "why": why} for path, why in self.left_out],
        }


def merge(folders: list[Path], settings: Settings, executor: Executor, lists: dict[str, list[str]]) -> Merged:
    """Merge folders into ``settings.output_dir``.

    A program that a journal knows is taken with what is recorded there; another one is run to see what it computes.

    Raises:
        WriteError: the output cannot be written; what is there by then is whole.
    """
    settings_.prepare_folder(settings.output_dir)
    journal = Journal(settings.output_dir, Fingerprint({"merge": True}))
    done = Merged()
    try:
        index = Index(journal)
        for record in journal.valid():
            journal.write_program(record)
        for path, record in _records(folders, executor, settings, lists, done):
            with index.locked():
                twin = index.holder(record["graph"])
                if twin:
                    done.duplicates.append((str(path), twin))
                    continue
                record = _named(record, settings.output_dir)
                journal.keep({"slot": len(journal.records), "status": "valid", "attempts": [], **record})
                journal.write_program(record)
                index.note(record)
            done.written += 1
        done.total = sum(1 for _ in settings.output_dir.glob("*.py"))
    finally:
        journal.close()
    return done


def check(folders: list[Path], output: Path) -> None:
    """Make sure, before anything is started, that there is something to merge.

    Raises:
        UsageError: a folder is not there or holds no program, or the output is one of them.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                "no-folder", f"{folder} is not a folder.", remedy="name folders of programs", paths=[folder]
            )
        if not any(folder.glob("*.py")):
            raise UsageError("no-programs", f"{folder} holds no .py file.", remedy="leave it out", paths=[folder])
        if output.exists() and folder.resolve() == output.resolve():
            raise UsageError(
                "same-folder",
                f"{folder} is also the output_dir.",
                remedy="name another output_dir; what is merged stays as it is",
                paths=[folder],
            )


def _records(
    folders: list[Path], executor: Executor, settings: Settings, lists: dict[str, list[str]], done: Merged
) -> Iterator[tuple[Path, dict[str, Any]]]:
    import importlib.metadata

    torch = importlib.metadata.version("torch")
    for folder in folders:
        recorded = _recorded(folder)
        waiting: list[tuple[Path, Any]] = []
        for path in sorted(folder.glob("*.py")):
            known = recorded.get(path.stem)
            # What another torch saw may be called something else there.
            if known and known["torch"] == torch and known["source"].encode("utf-8") == path.read_bytes():
                waiting.append((path, known))
                continue
            try:
                program = examine(read_source(path), path.stem)
            except Rejected as error:
                done.left_out.append((str(path), str(error)))
                continue
            todo = job(program.name, program.source, settings.limits, backend="none", lists=lists)
            waiting.append((path, (program, executor.submit(todo))))
        for path, found in waiting:
            if isinstance(found, dict):
                yield path, found
                continue
            program, future = found
            answer = future.result()
            if not answer["ok"]:
                done.left_out.append((str(path), f"{answer['category']}: {answer['message']}"))
                continue
            yield path, _seen(program, answer, lists)


def _seen(program: Program, answer: dict[str, Any], lists: dict[str, list[str]]) -> dict[str, Any]:
    labels = answer["labels"]
    named = [name for name in labels["operators"] if name in lists["names"]]
    return {
        "name": program.name,
        "source": program.source,
        "operators": named,
        "extra": [],
        "planned": {},
        "calls": labels["calls"],
        "signature": signature(named),
        "shape": program.shape,
        "graph": labels["graph"]["digest"],
        "torch": labels["torch"],
        "bridges": 0,
        "inputs": answer["inputs"],
        "outputs": answer["outputs"],
    }


def _recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a folder's journals by name; a line that cannot be read is no record."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        for line in path.read_bytes().splitlines()[1:]:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.get("status") == "valid":
                kept = {key: value for key, value in record.items() if key not in ("slot", "status", "attempts")}
                found[record["name"]] = kept
    return found


def _named(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Give a program another name where another one has its."""
    if not (folder / f"{record['name']}.py").exists():
        return record
    program = Program(record["name"], record["source"], record["shape"])
    other = program.renamed(class_name(record["operators"] or [record["name"]], record["graph"]))
    return {**record, "name": other.name, "source": other.source}
