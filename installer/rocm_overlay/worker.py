"""The worker's end of child.py: the job comes as a JSON file, events go to a file descriptor, one JSON object a line.

So what was told before a crash is kept. Standard output and error belong to the libraries.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rocm_overlay.install.hook import SourceFinder

Emit = Callable[..., None]


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
    """Run a worker's ``main`` with the arguments of this process."""
    with contextlib.suppress(BrokenPipeError):  # the parent has gone: there is no one to tell
        main(sys.argv[1:])
