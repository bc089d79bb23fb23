"""Standard output and error that outlive their readers: a report that is lost must not look like failed work."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class _Raw(io.RawIOBase):
    """A file descriptor whose first failure is kept instead of raised; what is written after it is dropped.

    The work of a command must not look failed, and its exit code must not depend on when the reader of a pipe left.
    """

    def __init__(self, fd: int, problem: OSError | None = None) -> None:
        self.fd = fd
        self.problem = problem

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.fd

    def isatty(self) -> bool:
        return self.problem is None and os.isatty(self.fd)

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        if self.problem is None:
            try:
                return os.write(self.fd, view)
            except OSError as error:
                self.problem = error
        return view.nbytes


@contextmanager
def guarded() -> Iterator[_Raw | None]:
    """Replace stdout and stderr of the process by streams that keep failures; yield that of stdout.

    Streams that somebody else put there, as tests do, stay and give None.
    """
    kept = sys.stdout, sys.stderr
    raw = None
    if sys.stdout is sys.__stdout__:
        raw, sys.stdout = _stream(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        _, sys.stderr = _stream(sys.stderr, 2)
    try:
        yield raw
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = kept


def _stream(old: TextIO | None, fd: int) -> tuple[_Raw, io.TextIOWrapper]:
    """Return a stream like ``old``, which is None where the process was started with a closed descriptor."""
    if old is None:
        raw = _Raw(fd, OSError(errno.EBADF, os.strerror(errno.EBADF)))
        return raw, io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    old.flush()
    raw = _Raw(old.fileno())
    text = io.TextIOWrapper(
        io.BufferedWriter(raw), old.encoding, "backslashreplace", line_buffering=fd == 2 or raw.isatty()
    )
    return raw, text


def unwritten(command: str, code: int, problem: OSError) -> None:
    """Say that the report is lost, unless its reader left, as `head` does; the exit code stays that of the work."""
    if not isinstance(problem, BrokenPipeError):
        reason = problem.strerror or str(problem)
        print(
            f"overlay {command}: the report could not be written ({reason}); the work itself ended with exit code "
            f"{code}\n  next: run `overlay status` to see what is applied",
            file=sys.stderr,
        )
