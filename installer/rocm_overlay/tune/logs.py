"""The shapes a server met: read from aiter's lines about its GEMM table, in a file or live from a running command."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Finding, TargetError, from_finding
from .cells import BadCell, dtype
from .shapes import Shape

# aiter writes one such line per shape and process; other processes may write into the middle of it.
_LINE = re.compile(
    r"shape is M:(\d+), N:(\d+), K:(\d+) dtype='?([\w.]+)'? otype='?([\w.]+)'? bias=(True|False), "
    r"scaleAB=(True|False), bpreshuffle=(True|False)\s*,?\s*(not found tuned config|found padded_M)"
)
_SIGNS = ("not found tuned config", "found padded_M")
MAX_LINE = 16_384


@dataclass(frozen=True)
class Seen:
    """What a log says: how often each shape missed or hit the table, and how many such lines could not be read."""

    misses: Mapping[Shape, int]
    hits: Mapping[Shape, int]
    unreadable: int
    lines: int


class LogReader:
    """Collects shapes line by line; one for a file, one for a live stream."""

    def __init__(self) -> None:
        self.misses: Counter[Shape] = Counter()
        self.hits: Counter[Shape] = Counter()
        self.unreadable = 0
        self.lines = 0

    def line(self, text: str) -> Shape | None:
        """Take one line; return the shape it names, None for any other line."""
        self.lines += 1
        if not any(sign in text for sign in _SIGNS):
            return None
        match = _LINE.search(text[:MAX_LINE])
        if match is None:
            self.unreadable += 1
            return None
        m, n, k, in_type, out_type, bias, scale, shuffle, what = match.groups()
        try:
            kinds = dtype(in_type, "dtype"), dtype(out_type, "otype")
        except BadCell:
            self.unreadable += 1
            return None
        shape = Shape(int(m), int(n), int(k), bias == "True", *kinds, scale == "True", shuffle == "True")
        (self.misses if what.startswith("not") else self.hits)[shape] += 1
        return shape

    def seen(self) -> Seen:
        return Seen(dict(self.misses), dict(self.hits), self.unreadable, self.lines)


def read_log(path: Path) -> Seen:
    """Return what a server log says; any encoding is survived, compressed and missing files are refused."""
    reader = LogReader()
    try:
        with path.open("rb") as stream:
            if stream.read(2) == b"\x1f\x8b":
                finding = Finding("error", "gzip", str(path), 0, "is gzip-compressed", f"gunzip -k {path.name}")
                raise from_finding(finding)
            stream.seek(0)
            for line in _bounded(stream):
                reader.line(line)
    except IsADirectoryError as error:
        raise from_finding(
            Finding("error", "is-directory", str(path), 0, "is a directory", "name the log file")
        ) from error
    except OSError as error:
        finding = Finding(
            "error", "unreadable", str(path), 0, f"cannot be read: {error.strerror or error}", "check the path"
        )
        raise from_finding(finding) from error
    return reader.seen()


def _bounded(stream: Iterable[bytes]) -> Iterable[str]:
    for line in stream:
        yield line[:MAX_LINE].decode("utf-8", "replace")


def record(command: Sequence[str], environment: Mapping[str, str]) -> tuple[Seen, int]:
    """Run a command, pass its output on to stderr, collect the shapes it looks up; return them and its exit status.

    aiter's own recorder rewrites a file inside site-packages on every call; its log lines tell the same.
    """
    reader = LogReader()
    env = {**environment, "AITER_LOG_LEVEL": "INFO", "AITER_LOG_TUNED_CONFIG": "1"}
    try:
        child = subprocess.Popen(list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
    except OSError as error:
        message = f"cannot start {command[0]}: {error.strerror or error}"
        raise TargetError("cannot-start", message, remedy="check the command after --") from error
    assert child.stdout is not None
    try:
        for line in child.stdout:
            text = line.decode("utf-8", "replace")
            sys.stderr.write(text)
            reader.line(text)
        return reader.seen(), child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
