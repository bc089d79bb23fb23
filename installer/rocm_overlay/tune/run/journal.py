"""What a tuning session has done so far: one line per shape, on disk before the next shape starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import journal
from ...errors import UsageError, WriteError
from ..shapes import Shape

SCHEMA = "amd-overlay.tune.session/2"


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


class Journal(journal.Journal):
    """The journal in a session's folder: one line per shape."""

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        with _said(path):
            super().__init__(path, SCHEMA, settings)
        self.done = {outcome.shape: outcome for outcome in map(_outcome, self.records)}

    def reused(self, shapes: Sequence[Shape]) -> journal.Reuse | None:
        """Return which of the shapes are finished; None where none is."""
        when = {Shape(*record["shape"]): at for record, at in zip(self.records, self.times, strict=True)}
        known = [when[shape] for shape in dict.fromkeys(shapes) if shape in when]
        return journal.Reuse(len(known), len(set(shapes)), max(known)) if known else None

    def add(self, outcome: Outcome) -> None:
        """Append one outcome and wait until it is on disk."""
        self.done[outcome.shape] = outcome
        with _said(self.path):
            self.append(outcome.as_json())


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except journal.NotAJournalError:
        message = f"{path} is not a session"
        raise UsageError("not-a-session", message, remedy="choose another --work folder", paths=(str(path),)) from None
    except journal.OtherRunError as error:
        message = f"{path} is another session: {error}"
        remedy = "use the same options to resume, another --work folder, or --fresh"
        raise UsageError("other-session", message, remedy=remedy, paths=(str(path),)) from None
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}"
        raise WriteError("cannot-write", message, remedy="choose another --work folder") from error
