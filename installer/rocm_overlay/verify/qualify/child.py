"""Starts the worker processes of a qualification. One that dies or says nothing for too long is an answer, too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

from ...child import Child
from ..workers import served, stage
from .session import Session


class WorkerError(RuntimeError):
    """A worker ended before its work was done. ``status`` is its exit status, or None where it was stopped."""

    def __init__(self, message: str, status: int | None, log: str) -> None:
        super().__init__(message)
        self.status = status
        self.log = log


def run(
    session: Session,
    do: str,
    on_event: Callable[[dict[str, Any]], float | None],
    *,
    limit: float,
    build: str = "overlay",
    **job: Any,
) -> None:
    """Run one worker job until its process ends; ``on_event`` may return another limit for the silence that follows.

    Raises WorkerError when the process dies with a status or is silent for longer than the limit (it is killed then).
    """
    scratch = session.scratch
    stage(scratch / build, session.sources, build)
    content = {
        "do": do,
        "model": str(session.model),
        "seeded": session.seeded,
        "seed": 0,
        "dtype": session.dtype,
        "captures": str(session.captures),
        **served(session.interpreter, scratch, build, session.sources),
        **job,
    }
    started = Child(session.interpreter.executable, "rocm_overlay.verify.qualify.worker", content, scratch, do)
    started.patience = limit
    with closing(started.events()) as events:  # whatever on_event raises ends the worker
        for event in events:
            started.patience = on_event(event) or started.patience
    if started.timed_out:
        raise WorkerError(f"no answer for {started.patience:.0f} s", None, started.log_tail())
    if started.status:
        message = f"the process ended with status {started.status}"
        raise WorkerError(message, started.status, started.log_tail())
