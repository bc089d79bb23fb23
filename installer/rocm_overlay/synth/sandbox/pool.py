"""Validation processes as this process sees them: start, send a job, get the answer, start again after a death."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from rocm_overlay import executor
from rocm_overlay.errors import TargetError
from rocm_overlay.executor import Executor

VALIDATE = "rocm_overlay.synth.sandbox.validate:validate"
NAMES = "rocm_overlay.synth.sandbox.labels:check_names"


@dataclass(frozen=True)
class Limits:
    """What one program may use: seconds of wall and CPU time, bytes of memory beyond torch itself."""

    timeout: float = 60.0
    memory: int = 2 << 30


@dataclass(frozen=True)
class Setup:
    """How a server is started: torch.compile backend to warm up, modules to import before the first fork."""

    backend: str = "none"
    prelude: tuple[str, ...] = ()
    path: tuple[str, ...] = ()


class Server:
    """One server process. Not for several threads at once."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: Any = None
        self.facts: dict[str, Any] = {}

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job and return its answer; a server that died is one too, and the next job gets a new one."""
        self.start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode("ascii") + b"\n")
            self._process.stdin.flush()
            line = self._answers.readline()
        except OSError:
            line = ""
        if not line:
            self.close()
            return {"ok": False, "category": "crash", "message": "the validation process died"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(self) -> None:
        """Start the process unless it runs.

        Raises:
            TargetError: it ended before it was ready.
        """
        if self._process is not None:
            return
        read, write = os.pipe()
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().endswith(("_KEY", "_TOKEN", "_SECRET"))
        }
        environment["PYTHONPATH"] = os.pathsep.join([*self.setup.path, *sys.path])
        environment["OMP_NUM_THREADS"] = "1"
        options = {"backend": self.setup.backend, "prelude": self.setup.prelude}
        command = [sys.executable, "-m", "rocm_overlay.synth.sandbox.server", str(write), json.dumps(options)]
        # In a session of its own: Ctrl-C of a terminal is for this process, which then ends the server.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[write],
            env=environment,
            start_new_session=True,
        )
        os.close(write)
        self._answers = os.fdopen(read, encoding="ascii")
        try:
            line = self._answers.readline()
        except BaseException:
            self._process.kill()
            self.close()
            raise
        if not line:
            code = self._process.wait()
            self.close()
            raise TargetError(
                "no-torch",
                f"The validation process did not start (exit status {code}); its last words are above.",
                remedy="install torch into this environment: pip install torch",
            )
        self.facts = json.loads(line)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            if self._process.stdin:
                with contextlib.suppress(BrokenPipeError):  # it is gone already, which is what was asked for
                    self._process.stdin.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._answers.close()
            self._process = None


def job(name: str, source: str, limits: Limits, *, kind: str = VALIDATE, **more: Any) -> dict[str, Any]:
    """Return the job that runs a program."""
    common = {"id": name, "kind": kind, "name": name, "source": source}
    return {**common, "timeout": limits.timeout, "memory": limits.memory, **more}


def make_executor(kind: str, workers: int, setup: Setup) -> Executor:
    """Return an executor whose workers are servers."""
    return executor.make_executor(kind, workers, functools.partial(Server, setup))
