"""The programs on the device: the tuner and the numeric check, each started for one shape and watched."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...child import kill
from ...errors import TargetError
from ...shared import tolerances
from ..installed import Aiter
from ..schema import COLUMNS
from ..shapes import Shape, render_untuned
from ..table import Row, read_table, render

DEVICE_SCRIPTS = Path(__file__).resolve().parent.parent / "on_device"
TAIL = 400


@dataclass(frozen=True)
class Ended:
    """How a program ended: its status, or the signal or time limit that ended it, and the end of its output."""

    code: int
    timed_out: bool
    tail: str

    @property
    def failure(self) -> str:
        """Return why it counts as failed, empty when it does not."""
        if self.timed_out:
            return "ran past the time limit"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        if self.code > 0:
            last = self.tail.strip().splitlines()[-1:] or [""]
            return f"exit status {self.code}: {last[0]}".rstrip(": ")
        return ""


def start(command: Sequence[str], log: Path, timeout: float, environment: Mapping[str, str]) -> Ended:
    """Run a program in a process group of its own, so that a hung tuner's workers end with it."""
    with log.open("ab") as stream:
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        except OSError as error:
            message = f"cannot start {command[0]}: {error.strerror or error}"
            raise TargetError("cannot-start", message, remedy="check --tuner, --verifier and --python") from error
        timed_out = False
        try:
            child.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            kill(child)  # the leader of a group that has no other process of ours
    return Ended(child.returncode, timed_out, _tail(log))


def _tail(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - TAIL))
        return stream.read().decode("utf-8", "replace")


def as_command(program: str, python: str) -> list[str]:
    """Return the command of a program: scripts run under the device's interpreter."""
    return [python, program] if program.endswith(".py") else [program]


def find_tuner(aiter: Aiter) -> Path:
    """Return the multi-backend tuner of an installed aiter; raise OverlayError when its sources are not installed."""
    roots = (aiter.package.parent / "aiter_meta", aiter.package.parent)
    for root in roots:
        script = root / "csrc" / "gemm_a16w16" / "gemm_a16w16_tune.py"
        if script.is_file():
            return script
    message = f"the aiter at {aiter.package} brings no csrc/gemm_a16w16/gemm_a16w16_tune.py"
    raise TargetError("no-tuner", message, remedy="name the tuner with --tuner, or use --backend tunableop")


@dataclass(frozen=True)
class Programs:
    """What to start on the device, and how long to wait for it."""

    tuner: tuple[str, ...]
    verifier: tuple[str, ...]
    timeout: float
    err_ratio: float
    environment: Mapping[str, str]
    extra: tuple[str, ...] = ()

    def tune(self, shape: Shape, folder: Path, libtype: str | None = None) -> tuple[Row | None, Ended]:
        """Return the tuner's row for one shape, with ``libtype`` limited to one library; None when it wrote none."""
        name = libtype or "all"
        asked, answer = folder / f"{name}.untuned.csv", folder / f"{name}.tuned.csv"
        asked.write_bytes(render_untuned([shape]))
        answer.write_bytes((",".join(COLUMNS) + "\n").encode())
        limited = ["--libtype", libtype] if libtype else []
        command = [
            *self.tuner,
            "-i",
            str(asked),
            "-o",
            str(answer),
            "--errRatio",
            str(self.err_ratio),
            *limited,
            *self.extra,
        ]
        ended = start(command, folder / f"{name}.log", self.timeout, self.environment)
        if ended.failure:
            return None, ended
        rows = read_table(answer).rows
        wanted = tuple(shape)
        mine = [row for row in rows if tuple(row.key[2:]) == wanted and (libtype is None or row.libtype == libtype)]
        return (mine[-1] if mine else None), ended

    def verify(self, row: Row, folder: Path) -> str:
        """Return why the row's result is wrong, empty when the device computed the right product with it."""
        table, answer = folder / "row.csv", folder / "verdict.json"
        table.write_bytes(render([row], COLUMNS))
        answer.unlink(missing_ok=True)
        ended = start([*self.verifier, str(table), str(answer)], folder / "verify.log", self.timeout, self.environment)
        if ended.failure:
            return f"the numeric check failed: {ended.failure}"
        try:
            verdict = json.loads(answer.read_text("utf-8"))
            ok, error = verdict["ok"], verdict["error"]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            return f"the numeric check gave no verdict ({problem})"
        return "" if ok is True else f"wrong product: error {error} against {verdict.get('allowed')} allowed"


def default_verifier(python: str) -> tuple[str, ...]:
    return (python, str(DEVICE_SCRIPTS / "check_row.py"), str(tolerances().ROW_TIMES_DEFAULT))


def tunableop_tuner(python: str) -> tuple[str, ...]:
    return (python, str(DEVICE_SCRIPTS / "tunableop_tuner.py"))


def this_python() -> str:
    return sys.executable
