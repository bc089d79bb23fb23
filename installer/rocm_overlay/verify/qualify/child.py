"""Starts the worker processes of a qualification. One that dies or says nothing for too long is an answer, too."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...child import beside, kill, spawn, tail
from ..workers import stage
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
        "sources": {source.module: str(scratch / build / source.path) for source in session.sources},
        "amd_ops_path": None if session.interpreter.amd_ops else str(beside("amd_ops", scratch / "fallback")),
        **job,
    }
    path, log = scratch / f"{do}.job.json", scratch / f"{do}.log"
    path.write_text(json.dumps(content))
    command = [session.interpreter.executable, "-m", "rocm_overlay.verify.qualify.worker", str(path)]
    process, reading = spawn(command, scratch, log)
    try:
        _follow(process, reading, on_event, limit, log)
    finally:
        os.close(reading)
        if process.poll() is None:
            kill(process)


def _follow(
    process: subprocess.Popen[bytes],
    reading: int,
    on_event: Callable[[dict[str, Any]], float | None],
    limit: float,
    log: Path,
) -> None:
    pending = b""
    deadline = time.monotonic() + limit
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise WorkerError(f"no answer for {limit:.0f} s", None, tail(log))
        data = os.read(reading, 65536)
        if not data:
            break
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            limit = on_event(json.loads(line)) or limit
            deadline = time.monotonic() + limit
    status = process.wait()
    if status:
        raise WorkerError(f"the process ended with status {status}", status, tail(log))
