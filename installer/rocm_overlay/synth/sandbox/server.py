"""A process that has torch loaded and makes one short-lived child per program.

Started by `rocm_overlay.synth.sandbox.pool`; jobs come as JSON lines on standard input, answers go to the descriptor
that is named on the command line. Forking after the import makes a validation cost milliseconds instead of seconds;
no program ever runs in this process itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from . import kernel, watch

_MAX_ANSWER = 1 << 20
_PIPE = 3  # where a child finds the pipe to its server; everything above is closed

Say = Callable[[dict[str, Any]], None]


def main(arguments: list[str]) -> int:
    """Answer jobs until standard input ends."""
    options = json.loads(arguments[1])
    scratch = Path(tempfile.mkdtemp(prefix="synth-", dir=options.get("scratch")))
    try:
        with os.fdopen(int(arguments[0]), "w", encoding="ascii") as answers:
            network = kernel.leave_the_network()
            _warm_up(options, scratch)
            print(json.dumps({"ready": True, "network_namespace": network}), file=answers, flush=True)
            for line in sys.stdin:
                print(json.dumps(_run(json.loads(line), scratch)), file=answers, flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def _warm_up(options: dict[str, Any], scratch: Path) -> None:
    """Import everything that children need, so that they open no file that this process could have opened once."""
    cache = scratch / "cache"
    cache.mkdir()
    os.environ.update(TMPDIR=str(scratch), TORCHINDUCTOR_CACHE_DIR=str(cache))
    os.environ.update(TORCHINDUCTOR_COMPILE_THREADS="1", TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    import torch

    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
    torch.set_num_threads(1)
    from . import validate

    validate.warm_up()

    backend = options.get("backend", "none")
    for module in options.get("prelude", ()):
        name, _, function = module.partition(":")
        loaded = __import__(name, fromlist=["_"])
        if function:
            getattr(loaded, function)()
    if backend != "none":
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        with torch.no_grad():
            torch.compile(model, backend=backend)(torch.ones(2, 4))
    # What is loaded now lives as long as every child: no collection of theirs has to look through it, or copy it.
    gc.collect()
    gc.freeze()


def _run(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Run one job in a child and return its answer, whatever becomes of the child."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    read, write = os.pipe()
    job["token"] = secrets.token_hex(8)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(read)
        _child(job, write, folder)
    os.close(write)
    try:
        answer = _listen(read, child, start + job["timeout"], job["token"])
    finally:
        os.close(read)
        shutil.rmtree(folder, ignore_errors=True)
    return {"id": job["id"], "seconds": round(time.monotonic() - start, 4), **answer}


def _listen(read: int, child: int, deadline: float, token: str) -> dict[str, Any]:
    """Collect what the child says until it ends or its time is over; then nothing of its process group is left."""
    said = b""
    late = False
    while len(said) < _MAX_ANSWER:
        wait = deadline - time.monotonic()
        # One job at a time: what arrives on standard input now is its end, and nobody waits for the answer any more.
        ready = select.select([read, 0], [], [], max(wait, 0.0))[0] if wait > 0 else []
        if read not in ready:
            late = True
            break
        part = os.read(read, 65536)
        if not part:
            break
        said += part
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return _judge(said, status, late, token)


def _judge(said: bytes, status: int, late: bool, token: str) -> dict[str, Any]:
    """Make an answer of what was said. Lines without the job's token are the program's own and count for nothing."""
    attempts: list[str] = []
    answer: dict[str, Any] | None = None
    for line in said.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a line that the kill cut off, or that the program wrote into the pipe
        if not isinstance(message, dict) or message.pop("token", None) != token:
            continue
        if "attempt" in message:
            attempts.append(str(message["attempt"]))
        elif "ok" in message:
            answer = message
    if attempts:
        return {"ok": False, "category": "hostile", "message": "; ".join(dict.fromkeys(attempts))}
    if late:
        return {"ok": False, "category": "timeout", "message": "the time limit was reached"}
    if answer is not None:
        return answer
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return {"ok": False, "category": "timeout", "message": "the CPU time limit was reached"}
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit status {os.WEXITSTATUS(status)}"
    return {"ok": False, "category": "crash", "message": f"the process ended without an answer ({how})"}


def _child(job: dict[str, Any], write: int, folder: Path) -> None:
    """Confine this process, run the job, answer, and end without the parent's clean-up code."""
    token = job["token"]
    try:
        os.setpgid(0, 0)
        kernel.die_with_parent()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.dup2(write, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.chdir(folder)
        say = partial(_say, token)
        say(_answer(job, say, folder))
    except BaseException as error:  # noqa: BLE001 - the last line of a process that must not return into the server
        _say(token, {"ok": False, "category": "crash", "message": f"{type(error).__name__}: {error}"[:300]})
    finally:
        os._exit(0)


def _answer(job: dict[str, Any], say: Say, folder: Path) -> dict[str, Any]:
    from .program import Failure

    layers = job.get("layers", ["builtins", "audit", "kernel"])
    builtins = watch.program_builtins(lambda what: say({"attempt": what})) if "builtins" in layers else None
    kind = _function(job["kind"])
    _confine(job, layers, say, folder)
    try:
        return {"ok": True, **kind(job, builtins)}
    except Failure as failure:
        return {"ok": False, "category": failure.category, "message": failure.message}
    except watch.Contained as error:
        return {"ok": False, "category": "hostile", "message": str(error)}
    except MemoryError:
        return {"ok": False, "category": "memory", "message": "MemoryError"}
    except Exception as error:  # noqa: BLE001 - a bug of ours: told with its place, and counted as a crash
        text = "".join(traceback.format_exception(error)[-3:])
        return {"ok": False, "category": "internal", "message": text[-800:]}


def _confine(job: dict[str, Any], layers: list[str], say: Say, folder: Path) -> None:
    building = job.get("backend") == "inductor"
    if "kernel" in layers:
        kernel.set_limits(
            memory=job["memory"], seconds=job["timeout"], file_size=64 << 20 if building else 0, open_files=256
        )
        if building:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
            kernel.write_only_under([folder, Path(os.devnull)])
        kernel.filter_calls("build" if building else "strict")
    if "audit" in layers:
        watch.install(lambda what: say({"attempt": what}), folder.parent, building=building)


def _function(kind: str) -> Any:
    """Return the function of a job, ``package.module:name``; only those of this package can be named."""
    module, _, name = kind.partition(":")
    if not module.startswith("rocm_overlay.synth."):
        raise ValueError(f"not a job of this package: {kind}")
    return getattr(__import__(module, fromlist=["_"]), name)


def _say(token: str, message: dict[str, Any]) -> None:
    os.write(_PIPE, json.dumps({"token": token, **message}).encode("ascii") + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
