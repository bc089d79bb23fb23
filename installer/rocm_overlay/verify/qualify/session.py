"""The state of one qualification on disk: what it is about, what was captured, which candidates are done."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..switches import Point, points_of
from ..target import Interpreter, Source


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
        key = self._key(machine)
        known = self.work / "key"
        resumed = known.is_file() and known.read_text() == key
        if not resumed and self.work.exists():
            shutil.rmtree(self.captures, ignore_errors=True)
            (self.work / "results.jsonl").unlink(missing_ok=True)
        self.captures.mkdir(parents=True, exist_ok=True)
        for partial in self.captures.rglob("*.partial"):  # of a run that was killed while it wrote
            partial.unlink()
        known.write_text(key)
        self.results = {item["id"]: item for item in self._read()} if resumed else {}
        return resumed

    def _key(self, machine: dict[str, Any]) -> str:
        weights = sorted(
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in (self.model.parent if self.seeded else self.model).glob("*")
            if path.is_file() and (not self.seeded or path == self.model)
        )
        sources = [source.as_json() for source in self.sources]
        text = json.dumps([machine, str(self.model), weights, sources, self.dtype], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _read(self) -> Iterator[dict[str, Any]]:
        path = self.work / "results.jsonl"
        if not path.is_file():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return  # the line that was being written when the run was killed

    def keep(self, result: dict[str, Any]) -> None:
        """Remember a candidate's result on disk."""
        self.results[result["id"]] = result
        with (self.work / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")

    @property
    def captured(self) -> bool:
        """True when the capture of an earlier run was finished."""
        return (self.captures / "complete").is_file()
