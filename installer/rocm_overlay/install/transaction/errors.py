"""Errors a person can act on. Each has the exit code of the `overlay` program, a stable id and a next step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

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


class OverlayError(Exception):
    """A refusal or failure with everything that the reader needs.

    `message` names the file, what was found and what was expected; `remedy` is the next command or action.
    """

    code: ClassVar[int] = BUG

    def __init__(self, id: str, message: str, *, remedy: str, paths: Iterable[object] = ()) -> None:
        super().__init__(message)
        self.id = id
        self.message = message
        self.remedy = remedy
        self.paths = tuple(str(path) for path in paths)

    def to_json(self) -> dict[str, object]:
        """Return the `error` object of every `--json` answer."""
        return {
            "code": self.code,
            "id": self.id,
            "message": self.message,
            "paths": list(self.paths),
            "remedy": self.remedy,
        }


class UsageError(OverlayError):
    """The command line names something that does not exist."""

    code = USAGE


class UnsupportedError(OverlayError):
    """The installed release, or the text of a file in it, has no overlay."""

    code = UNSUPPORTED


class ForeignError(OverlayError):
    """A file is neither stock nor ours: somebody edited it."""

    code = FOREIGN


class WriteError(OverlayError):
    """The tree cannot be written; nothing was changed."""

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
    """No transformers, several of them, or one that must not be written."""

    code = TARGET


class RolledBackError(OverlayError):
    """The transaction failed after its commit point and the files are as before."""

    code = ROLLED_BACK


class CancelledError(OverlayError):
    """A signal ended the command; the files are as before unless the message says otherwise."""

    code = INTERRUPTED
