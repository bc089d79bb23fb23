"""A worker process in the interpreter under test: a job goes in as a JSON file, events come back one per line.

The worker sees the user's environment without toggles, with links to this program's packages and to nothing else of its
site-packages; it is offline and writes no bytecode into anyone's tree.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LOG_LINES = 15


class Child:
    """One process: its events while it runs, its status and log after it has ended."""

    def __init__(self, executable: str, module: str, job: dict[str, Any], scratch: Path) -> None:
        """Write the job into ``scratch``, a folder that no other child uses at the same time."""
        self._command = [executable, "-m", module]
        self._scratch = scratch
        self._log = scratch / "log"
        self._job = scratch / "job.json"
        self._job.write_text(json.dumps(job))
        self.status = 0
        self.timed_out = False

    def events(self, env: Mapping[str, str] | None = None, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """Start the process and yield its events until it ends. It is killed after ``timeout`` seconds, or when the
        reader stops reading.
        """
        process, reading = spawn([*self._command, str(self._job)], self._scratch, self._log, env)
        timer = threading.Timer(timeout, self._give_up, (process,)) if timeout is not None else None
        if timer is not None:
            timer.start()
        try:
            with os.fdopen(reading, encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)
            self.status = process.wait()
        finally:
            if timer is not None:
                timer.cancel()
            if process.poll() is None:
                kill(process)

    def _give_up(self, process: subprocess.Popen[bytes]) -> None:
        self.timed_out = True
        kill(process)

    def log_tail(self) -> str:
        """Return the last lines that the process wrote."""
        return tail(self._log)


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-_LOG_LINES:])


def spawn(
    command: list[str], scratch: Path, log: Path, env: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """Start ``command`` with a pipe's number as its last argument; return the process and the end to read from."""
    reading, writing = os.pipe()
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(writing)],
                cwd=scratch, env=environment(scratch, env), pass_fds=(writing,),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, reading


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process with everything that it started."""
    with contextlib.suppress(ProcessLookupError):  # it may have ended by itself in between
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_toggle(name: str) -> bool:
    """Return whether an environment variable chooses what `amd_ops` does."""
    if name.startswith("AMD_OPS"):
        return name != "AMD_OPS_PROFILES"  # a place, not a choice
    if name.startswith("USE_"):
        return name.removeprefix("USE_").startswith(("AITER", "OPTIMIZED", "FUSED", "PRESHUFFLE"))
    return name in ("FORCE_EAGER_ATTENTION", "PRESHUFFLE_M_THRESH")


def environment(scratch: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The user's environment without toggles, and ``more``; offline, writing no bytecode into anyone's tree."""
    kept = {**{name: value for name, value in os.environ.items() if not is_toggle(name)}, **(more or {})}
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
    if not link.exists():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise RuntimeError(
                f"{package} is missing beside rocm_overlay: transformers-rocm-overlay is not installed whole"
            )
        folder.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(spec.origin).resolve().parent)
    return folder
