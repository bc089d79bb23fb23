"""What patchgen says when it cannot go on: where, what was expected, what was found, and the nearest candidate."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A position in a source file; ``line`` is 1-based, ``None`` for the file as a whole."""

    path: str
    line: int | None = None

    def __str__(self) -> str:
        return self.path if self.line is None else f"{self.path}:{self.line}"


class PatchgenError(Exception):
    """Base of every error that is the input's or the user's fault; ``str()`` is a complete message.

    ``kind`` is a stable identifier for programs.
    """

    kind = "patchgen"

    def __init__(
        self,
        message: str,
        *,
        place: Place | None = None,
        expected: str | None = None,
        found: str | None = None,
        nearest: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.message = message
        self.place = place
        self.expected = expected
        self.found = found
        self.nearest = nearest
        self.remedy = remedy
        super().__init__(self.render())

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes with every fact, not only with the rendered text."""
        facts = (self.message, self.place, self.expected, self.found, self.nearest, self.remedy)
        return _rebuild, (type(self), *facts)

    def render(self) -> str:
        """Return the message in the compiler form ``file:line: message`` with one indented line per known fact."""
        head = f"{self.place}: {self.message}" if self.place else self.message
        facts = (
            ("expected", self.expected),
            ("found", self.found),
            ("nearest", self.nearest),
            ("do", self.remedy),
        )
        return "\n".join([head, *(f"  {name}: {text}" for name, text in facts if text)])


def _rebuild(kind: type[PatchgenError], message: str, *facts: object) -> PatchgenError:
    names = ("place", "expected", "found", "nearest", "remedy")
    return kind(message, **dict(zip(names, facts, strict=True)))  # type: ignore[arg-type]


class SourceError(PatchgenError):
    """The stock file cannot be read as Python source: encoding, syntax, or a text that is already somebody's edit."""

    kind = "source"


class EditConflict(PatchgenError):
    """Two edits claim the same bytes."""

    kind = "edit-conflict"


class MustFireError(PatchgenError):
    """A recipe that had to find a site found none."""

    kind = "must-fire"


class TargetError(PatchgenError):
    """The model, module, file or package folder asked for does not exist."""

    kind = "target"


class OutputError(PatchgenError):
    """The output folder cannot be written safely; nothing was written."""

    kind = "output"


class DriftError(PatchgenError):
    """What is committed differs from what the generator makes now."""

    kind = "drift"


class InternalError(PatchgenError):
    """A law of the generator would have been broken: a bug of ours, never of the input."""

    kind = "internal"


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that looks most like ``name``, or None when none is close."""
    found = difflib.get_close_matches(name, sorted(set(candidates)), n=1, cutoff=0.5)
    return found[0] if found else None
