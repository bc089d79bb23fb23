"""SIGINT and SIGTERM inside a transaction: the first one is noted, the second one ends the process at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from ...errors import CancelledError


class HardStop(BaseException):
    """A second signal: leave everything as it is. An open journal is healed by the next command."""


class Signals:
    """While active, ``check()`` raises CancelledError once a signal has come. Does nothing outside the main thread."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise CancelledError when a signal has been received."""
        if self.received is not None:
            name = signal.Signals(self.received).name
            raise CancelledError(
                "interrupted", f"{name} received; the files are as they were before the command.",
                remedy="run the command again when you are ready",
            )  # fmt: skip

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise HardStop
        self.received = number
