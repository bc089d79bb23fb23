"""The state of one qualification on disk: what it is about, what was captured, which candidates are done.

Results on another subject are no use to anybody, so they make way, where other runs refuse another's folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...fingerprint import Fingerprint
from ...journal import Journal, NotAJournalError, OtherRunError
from ..switches import Point, needs_of, points_of
from ..target import Interpreter, Source, fingerprint_of

SCHEMA = "amd-overlay.qualify.results/2"
PLAN = "plan"
"""The switch that takes whole decode steps."""


@dataclass
class Session:
    """One model on one interpreter. ``work`` outlives the process, so that a killed run goes on where it was."""

    interpreter: Interpreter
    model: Path
    seeded: bool
    sources: list[Source]
    dtype: str
    work: Path
    inputs: str | None = None
    """The sha256 of the file with a forward's arguments, where the user gave one: it decides what is captured."""
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    _journal: Journal | None = None
    _fingerprint: Fingerprint | None = None

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
        """The model's integration points, from its overlaid texts, without those of plans."""
        return [point for point in self._all_points() if point.switch != PLAN]

    @property
    def has_plan(self) -> bool:
        """True where an edit runs a decode step by a plan: that is a matter of the whole model, not of one call."""
        return any(point.switch == PLAN for point in self._all_points())

    def _all_points(self) -> list[Point]:
        return [point for source in self.sources for point in points_of(source.module, source.overlay)]

    def places(self) -> list[dict[str, Any]]:
        """The methods and functions to capture, each once, with the children that their edits need (None: all)."""
        needs = {(source.module, name): names
                 for source in self.sources for name, names in needs_of(source.overlay).items()}  # fmt: skip
        found = dict.fromkeys((point.module, point.qualname) for point in self.points)
        return [{"module": module, "qualname": name, "needs": needs.get((module, name))} for module, name in found]

    def subject(self, machine: dict[str, Any]) -> str:
        """Return a hash of everything that a result depends on: a profile of the same subject holds."""
        return self._subject(machine).digest

    def open(self, machine: dict[str, Any], *, fresh: bool = False) -> bool:
        """Make the work folder; True when results of an earlier run on the same subject are taken up."""
        path = self.work / "results.jsonl"
        subject = self._subject(machine).ingredients
        if fresh or not _continues(path, subject):
            # In this order: a kill in between never leaves captures of another subject beside a journal of this one.
            path.unlink(missing_ok=True)
            if self.captures.exists():
                shutil.rmtree(self.captures)
        self._journal = Journal(path, SCHEMA, subject)
        self.captures.mkdir(parents=True, exist_ok=True)
        for partial in self.captures.rglob("*.partial"):  # of a run that was killed while it wrote
            partial.unlink()
        self.results = {item["id"]: item for item in self._journal.records}
        return self._journal.resumed

    def _subject(self, machine: dict[str, Any]) -> Fingerprint:
        """Everything that a result depends on, by content."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self.interpreter, self.model, self.sources)
        given = {} if self.inputs is None else {"inputs": self.inputs}
        return self._fingerprint.planned({"machine": machine, "dtype": self.dtype, "seeded": self.seeded, **given})

    def keep(self, result: dict[str, Any]) -> None:
        """Remember a candidate's result: on disk, too, where the session is open."""
        if self._journal is not None:
            self._journal.append(result)
        self.results[result["id"]] = result

    @property
    def _complete(self) -> Path:
        return self.captures / "complete.json"

    def keep_capture(self, told: dict[str, Any]) -> None:
        """Remember that the capture is finished, and what it kept and lost."""
        self._complete.write_text(json.dumps(told))

    @property
    def captured(self) -> dict[str, Any] | None:
        """What the finished capture of an earlier run kept and lost; None where there is none."""
        try:
            found: dict[str, Any] = json.loads(self._complete.read_bytes())
        except (OSError, ValueError):
            return None
        return found


def _continues(path: Path, subject: Mapping[str, Any]) -> bool:
    """True where results on this very subject lie at ``path``."""
    try:
        return path.is_file() and Journal(path, SCHEMA, subject).resumed
    except (NotAJournalError, OtherRunError):
        return False
