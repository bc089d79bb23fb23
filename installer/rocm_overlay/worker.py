"""The worker's end of child.py: the job comes as a JSON file, events go to a file descriptor, one JSON object a line.

So what was told before a crash is kept. Standard output and error belong to the libraries.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rocm_overlay.install.hook import SourceFinder

Emit = Callable[..., None]
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def serving(arguments: list[str]) -> Iterator[tuple[dict[str, Any], Emit]]:
    """Yield the job and what emits an event, with the job's build of transformers in place of the installed one."""
    job = json.loads(Path(arguments[0]).read_bytes())
    with os.fdopen(int(arguments[1]), "w", encoding="utf-8") as events:

        def emit(event: str, **values: Any) -> None:
            print(json.dumps({"event": event, **values}, allow_nan=False), file=events, flush=True)

        if job["amd_ops_path"]:
            sys.path.append(job["amd_ops_path"])
        with SourceFinder(job["sources"]):
            yield job, emit


def end(main: Callable[[list[str]], None]) -> None:
    """Run a worker's ``main`` with the arguments of this process, which ends when its parent does."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if _abandoned(int(sys.argv[2])):  # it ended before that
        return
    with contextlib.suppress(BrokenPipeError):  # the parent has closed the pipe
        main(sys.argv[1:])


def _abandoned(events: int) -> bool:
    """True where nobody can read what is written to a pipe."""
    poll = select.poll()
    poll.register(events, 0)
    return bool(poll.poll(0))
