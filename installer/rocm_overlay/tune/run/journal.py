"""What a tuning session has done so far: one line per shape, on disk before the next shape starts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EXIT_CANNOT_WRITE, TuneError
from ..shapes import Shape

SCHEMA = "amd-overlay.tune.session/1"


@dataclass(frozen=True)
class Outcome:
    """The end of one shape. ``status``: kept, no-gain, wrong, impossible, crashed, timeout or no-baseline."""

    shape: Shape
    status: str
    reason: str
    us: float | None = None
    default_us: float | None = None
    row: Mapping[str, str] | None = None

    def as_json(self) -> dict[str, object]:
        return {
            "shape": list(self.shape),
            "status": self.status,
            "reason": self.reason,
            "us": self.us,
            "default_us": self.default_us,
            "row": dict(self.row) if self.row is not None else None,
        }


def _outcome(value: Mapping[str, Any]) -> Outcome:
    return Outcome(
        Shape(*value["shape"]), value["status"], value["reason"], value["us"], value["default_us"], value["row"]
    )


class Journal:
    """The session file. A line torn by a kill is dropped; a session of other settings is refused."""

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        self.path = path
        self.settings = dict(settings)
        self.done: dict[Shape, Outcome] = {}

    def open(self) -> None:
        """Read what an earlier run finished, or start the file; raise TuneError when the settings differ."""
        lines = self._lines()
        if not lines and self.path.exists() and self.path.stat().st_size:
            message = f"{self.path} is not a session"
            raise TuneError("not-a-session", message, "choose another --work folder", paths=(str(self.path),))
        if not lines:
            self._replace([{"schema": SCHEMA, **self.settings}])
            return
        header, *rest = lines
        stated = {key: value for key, value in header.items() if key != "schema"}
        if header.get("schema") != SCHEMA or stated != json.loads(json.dumps(self.settings)):
            changed = sorted(key for key in {*stated, *self.settings} if stated.get(key) != self.settings.get(key))
            raise TuneError(
                "other-session",
                f"{self.path} is a session with another {', '.join(changed) or 'format'}",
                "use the same options to resume, another --work folder, or --restart",
                paths=(str(self.path),),
            )
        for value in rest:
            outcome = _outcome(value)
            self.done[outcome.shape] = outcome
        # The torn tail is cut off, so that the next line does not continue it.
        self._replace([header, *rest])

    def _lines(self) -> list[dict[str, Any]]:
        try:
            text = self.path.read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        found: list[dict[str, Any]] = []
        for number, line in enumerate(text.split("\n")):
            if not line:
                continue
            try:
                value = json.loads(line)
                if number:
                    _outcome(value)
            except (ValueError, KeyError, TypeError):
                break
            found.append(value)
        return found

    def _replace(self, values: list[dict[str, Any]]) -> None:
        temporary = self.path.with_name(self.path.name + ".tmp")
        self._write(temporary, "w", "".join(json.dumps(value) + "\n" for value in values))
        os.replace(temporary, self.path)

    def add(self, outcome: Outcome) -> None:
        """Append one outcome and wait until it is on disk."""
        self.done[outcome.shape] = outcome
        self._write(self.path, "a", json.dumps(outcome.as_json()) + "\n")

    def _write(self, path: Path, mode: str, text: str) -> None:
        try:
            with path.open(mode, encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            message = f"cannot write {path}: {error.strerror or error}"
            raise TuneError("cannot-write", message, "choose another --work folder", EXIT_CANNOT_WRITE) from error
