"""A worker process in the interpreter under test: a job goes in as a JSON file, events come back one per line.

The worker sees the user's environment without toggles, with links to this program's packages and to nothing else of its
site-packages; it is offline and writes no bytecode into anyone's tree.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from .shared import rules

_LOG_LINES = 15
Events = Generator[dict[str, Any], None, None]


class Child:
    """One process: its events while it runs, its status and log after it has ended."""

    def __init__(self, executable: str, module: str, job: dict[str, Any], scratch: Path, name: str = "job") -> None:
        """Write the job ``name`` into ``scratch``, a folder that no other child uses at the same time."""
        self._command = [executable, "-m", module, str(scratch / f"{name}.json")]
        self._scratch = scratch
        self._log = scratch / f"{name}.log"
        (scratch / f"{name}.json").write_text(json.dumps(job))
        self.status = 0
        self.timed_out = False
        self.patience: float | None = None
        """How many seconds without an event mean that it hangs; may be changed while events come."""

    def events(self, env: Mapping[str, str] | None = None, timeout: float | None = None) -> Events:
        """Start the process and yield its events until it ends. It is killed after ``timeout`` seconds, when it hangs,
        or when the reader stops reading.
        """
        end = None if timeout is None else time.monotonic() + timeout
        process, reading = self._start(env)
        pending = b""
        try:
            while data := self._read(reading, end):
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    yield json.loads(line)
            if not self.timed_out:
                self.status = process.wait()
        finally:
            os.close(reading)
            if process.poll() is None:
                kill(process)

    def _read(self, reading: int, end: float | None) -> bytes:
        """Return what the process wrote next; nothing when it has ended, or its time has."""
        now = time.monotonic()
        limits = [end - now] if end is not None else []
        limits += [self.patience] if self.patience is not None else []
        if select.select([reading], [], [], max(0.0, min(limits)) if limits else None)[0]:
            return os.read(reading, 1 << 16)
        self.timed_out = True
        return b""

    def _start(self, env: Mapping[str, str] | None) -> tuple[subprocess.Popen[bytes], int]:
        """Start the process with a pipe's number as its last argument; return it and the end to read from."""
        reading, writing = os.pipe()
        try:
            with self._log.open("wb") as output:
                process = subprocess.Popen(
                    [*self._command, str(writing)],
                    cwd=self._scratch, env=environment(self._scratch, env), pass_fds=(writing,),
                    stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return process, reading

    def log_tail(self) -> str:
        """Return the last lines that the process wrote."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join(lines[-_LOG_LINES:])


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process with everything that it started."""
    with contextlib.suppress(ProcessLookupError):  # it may have ended by itself in between
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(scratch: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The user's environment without toggles, and ``more``; offline, writing no bytecode into anyone's tree."""
    kept = {
        **{name: value for name, value in os.environ.items() if not rules().is_toggle(name)},
        **(more or {}),
    }
    path = [str(beside("rocm_overlay", scratch / "tool")), kept.get("PYTHONPATH", "")]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def beside(package: str, folder: Path) -> Path:
    """Return a folder that holds a link to one package of this program and nothing else of its site-packages."""
    link = folder / package
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(
            f"{package} is missing beside rocm_overlay: transformers-rocm-overlay is not installed whole"
        )
    target = Path(spec.origin).resolve().parent
    if not link.is_symlink() or Path(os.readlink(link)) != target:
        folder.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)  # of a program elsewhere, in a folder that outlives its process
        link.symlink_to(target)
    return folder
