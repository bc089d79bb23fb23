"""The state of one qualification on disk: what it is about, what was captured, which candidates are done.

Results on another subject are no use to anybody, so they make way, where other runs refuse another's folder.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...journal import Journal, NotAJournalError, OtherRunError
from ..switches import Point, points_of
from ..target import Interpreter, Source

SCHEMA = "amd-overlay.qualify.results/1"


@dataclass
class Session:
    """One model on one interpreter. ``work`` outlives the process, so that a killed run goes on where it was."""

    interpreter: Interpreter
    model: Path
    seeded: bool
    sources: list[Source]
    dtype: str
    work: Path
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    _journal: Journal | None = None

    @property
    def captures(self) -> Path:
        """The folder of the captured calls."""
        return self.work / "captures"

    @property
    def scratch(self) -> Path:
        """The folder of jobs, logs and staged sources."""
        return self.work / "scratch"

    @property
    def points(self) -> list[Point]:
        """The model's integration points, from its overlaid texts."""
        return [point for source in self.sources for point in points_of(source.module, source.overlay)]

    def places(self) -> list[dict[str, str]]:
        """The methods and functions to capture, each once."""
        found = {(point.module, point.qualname): None for point in self.points}
        return [{"module": module, "qualname": qualname} for module, qualname in found]

    def open(self, machine: dict[str, Any]) -> bool:
        """Make the work folder; True when results of an interrupted run on the same subject are taken up."""
        path = self.work / "results.jsonl"
        subject = self._subject(machine)
        try:
            self._journal = Journal(path, SCHEMA, subject)
        except (NotAJournalError, OtherRunError):
            path.unlink()
            self._journal = Journal(path, SCHEMA, subject)
        if not self._journal.resumed:
            shutil.rmtree(self.captures, ignore_errors=True)
        self.captures.mkdir(parents=True, exist_ok=True)
        for partial in self.captures.rglob("*.partial"):  # of a run that was killed while it wrote
            partial.unlink()
        self.results = {item["id"]: item for item in self._journal.records}
        return self._journal.resumed

    def _subject(self, machine: dict[str, Any]) -> dict[str, Any]:
        """Everything that a result depends on."""
        weights = sorted(
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in (self.model.parent if self.seeded else self.model).glob("*")
            if path.is_file() and (not self.seeded or path == self.model)
        )
        return {
            "machine": machine,
            "model": str(self.model),
            "weights": weights,
            "sources": [source.as_json() for source in self.sources],
            "dtype": self.dtype,
        }

    def keep(self, result: dict[str, Any]) -> None:
        """Remember a candidate's result on disk."""
        assert self._journal is not None, "the session is not open"
        self._journal.append(result)
        self.results[result["id"]] = result

    @property
    def captured(self) -> bool:
        """True when the capture of an earlier run was finished."""
        return (self.captures / "complete").is_file()
