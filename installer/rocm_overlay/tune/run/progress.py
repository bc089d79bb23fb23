"""One line per shape on stderr; on a terminal the running shape is shown and overwritten."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self.stream = stream if stream is not None else sys.stderr
        self.live = self.stream.isatty()
        self.started = time.monotonic()
        self.finished = 0

    def running(self, number: int, what: str) -> None:
        if self.live:
            self.stream.write(f"\r\x1b[K[{number}/{self.total}] {what} ...{self._left()}")
            self.stream.flush()

    def done(self, number: int, what: str, result: str) -> None:
        self.finished += 1
        start = "\r\x1b[K" if self.live else ""
        self.stream.write(f"{start}[{number}/{self.total}] {what}: {result}\n")
        self.stream.flush()

    def _left(self) -> str:
        if not self.finished:
            return ""
        per_shape = (time.monotonic() - self.started) / self.finished
        return f" about {per_shape * (self.total - self.finished) / 60:.0f} min left"
