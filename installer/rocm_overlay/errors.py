"""Errors a person can act on. Each has the exit code of the `overlay` program, a stable id and a next step.

One family for all rooms, and the standard library alone: the transaction raises these, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

DIFFERENT = 1
USAGE = 2
UNSUPPORTED = 3
FOREIGN = 4
CANNOT_WRITE = 5
BUSY = 6
UNRECOVERED = 7
BUNDLE = 8
TARGET = 9
ROLLED_BACK = 10
BUG = 70
INTERRUPTED = 130


@dataclass(frozen=True)
class Place:
    """A position in a file; ``line`` counts from 1, None for the file as a whole."""

    path: str
    line: int | None = None

    def __str__(self) -> str:
        return self.path if self.line is None else f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Finding:
    """One observation about an input; ``line`` counts from 1 and is 0 when the whole file is meant."""

    severity: Literal["error", "warning", "info"]
    id: str
    path: str
    line: int
    message: str
    remedy: str = ""

    @property
    def place(self) -> str:
        """``path:line``, or the path alone."""
        return f"{self.path}:{self.line}" if self.line else self.path

    def text(self) -> str:
        """Return ``place: severity: message [id] (remedy)``, the form in which every command prints findings."""
        end = f" ({self.remedy})" if self.remedy else ""
        return f"{self.place}: {self.severity}: {self.message} [{self.id}]{end}"

    def as_json(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


class OverlayError(Exception):
    """A refusal or failure with everything that the reader needs.

    `message` names the file, what was found and what was expected; `remedy` is the next command or action. What is
    known of one place in a file is kept apart: `place`, `expected`, `found`, `nearest`.
    """

    code: int = BUG

    def __init__(
        self,
        id: str,
        message: str,
        *,
        remedy: str | None = None,
        paths: Iterable[object] = (),
        findings: Iterable[Finding] = (),
        place: Place | None = None,
        expected: str | None = None,
        found: str | None = None,
        nearest: str | None = None,
    ) -> None:
        super().__init__(message)
        self.id = id
        self.message = message
        self.remedy = remedy or ""
        self.paths = tuple(str(path) for path in paths)
        self.findings = tuple(findings)
        self.place = place
        self.expected = expected
        self.found = found
        self.nearest = nearest

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes with every fact, whatever a subclass takes to be made."""
        return _rebuild, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        """Return the message in the compiler form ``file:line: message`` with one indented line per known fact."""
        head = f"{self.place}: {self.message}" if self.place else self.message
        facts = (("expected", self.expected), ("found", self.found), ("nearest", self.nearest))
        return "\n".join([head, *(f"  {name}: {text}" for name, text in facts if text)])

    def to_json(self) -> dict[str, object]:
        """Return the `error` object of every `--json` answer."""
        return {
            **{
                name: getattr(self, name)
                for name in ("code", "id", "message", "remedy", "expected", "found", "nearest")
            },
            "paths": list(self.paths),
            "place": None if self.place is None else str(self.place),
            "findings": [finding.as_json() for finding in self.findings],
        }


def _rebuild(kind: type[OverlayError], args: tuple[object, ...], facts: Mapping[str, object]) -> OverlayError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class UsageError(OverlayError):
    """The command line names something that does not exist, or an input that cannot be used."""

    code = USAGE


class UnsupportedError(OverlayError):
    """The installed release, or the text of a file in it, has no overlay."""

    code = UNSUPPORTED


class ForeignError(OverlayError):
    """A file is neither stock nor ours: somebody edited it."""

    code = FOREIGN


class WriteError(OverlayError):
    """The tree or an output cannot be written; nothing was changed."""

    code = CANNOT_WRITE


class BusyError(OverlayError):
    """Another process holds the lock."""

    code = BUSY


class UnrecoveredError(OverlayError):
    """An open transaction, or the state folder, needs a person's decision."""

    code = UNRECOVERED


class BundleError(OverlayError):
    """Our own overlays or their manifest are damaged."""

    code = BUNDLE


class TargetError(OverlayError):
    """No transformers, several of them, or one that must not be written; no such model, file or program."""

    code = TARGET


class RolledBackError(OverlayError):
    """The transaction failed after its commit point and the files are as before."""

    code = ROLLED_BACK


class CancelledError(OverlayError):
    """A signal ended the command; the files are as before unless the message says otherwise."""

    code = INTERRUPTED


class GeneratorError(OverlayError):
    """Base of what goes wrong while a text is generated; the class gives the id."""

    kind: ClassVar[str] = "patchgen"
    code = DIFFERENT

    def __init__(
        self,
        message: str,
        *,
        place: Place | None = None,
        expected: str | None = None,
        found: str | None = None,
        nearest: str | None = None,
        remedy: str | None = None,
        findings: Iterable[Finding] = (),
    ) -> None:
        super().__init__(
            self.kind, message,
            place=place, expected=expected, found=found, nearest=nearest, remedy=remedy, findings=findings,
        )  # fmt: skip


class SourceError(GeneratorError):
    """The stock file cannot be read as Python source: encoding, syntax, or a text that is already somebody's edit."""

    kind = "source"
    code = FOREIGN


class EditConflict(GeneratorError):
    """Two edits claim the same bytes."""

    kind = "edit-conflict"


class MustFireError(GeneratorError):
    """A recipe that had to find a site found none."""

    kind = "must-fire"


class DriftError(GeneratorError):
    """What is committed differs from what the generator makes now."""

    kind = "drift"


class InternalError(GeneratorError):
    """A law of the generator would have been broken: a bug of ours, never of the input."""

    kind = "internal"
    code = BUG


class SeveralErrors(OverlayError):
    """All that is wrong with several inputs; the exit code is the highest of theirs."""

    def __init__(self, errors: Iterable[OverlayError], end: str = "nothing was written") -> None:
        self.errors = tuple(errors)
        self.code = max(error.code for error in self.errors)
        listed = [
            Finding("error", one.id, one.place.path if one.place else "", (one.place.line if one.place else 0) or 0,
                    str(one) if one.place is None else str(one).partition(": ")[2], one.remedy)
            for one in self.errors
        ]  # fmt: skip
        remedy = next((one.remedy for one in self.errors if one.remedy), None)
        # Named, because a room's own family may stand beside this class among the bases.
        OverlayError.__init__(self, "several", f"{len(listed)} errors; {end}", findings=listed, remedy=remedy)

    def __str__(self) -> str:
        """Return every error with its remedy: who catches this in a program has no console that adds it."""
        return "\n".join(f"{one}\n  next: {one.remedy}" if one.remedy else str(one) for one in self.errors)


def several(errors: Sequence[OverlayError]) -> OverlayError:
    """Return the one error, or all of them as one."""
    return errors[0] if len(errors) == 1 else SeveralErrors(errors)


def from_finding(finding: Finding) -> UsageError:
    """Return the error of a file that cannot be used at all."""
    place = Place(finding.path, finding.line or None)
    return UsageError(finding.id, finding.message, remedy=finding.remedy, paths=(finding.path,), place=place)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that looks most like ``name``, None where none does."""
    found = alike(name, known, 1)
    return found[0] if found else None


def alike(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` known names that look like ``name``, the most alike first, in any case of letters."""
    by_lower = {one.lower(): one for one in sorted(known, reverse=True)}
    return [by_lower[one] for one in difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)]
