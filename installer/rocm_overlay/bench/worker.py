"""One process of the interpreter under test: loads the model with one build of its code, measures one cell, ends.

Started as ``python -m rocm_overlay.bench.worker JOB FD``. The job is a JSON file; events go to the file descriptor, one
JSON object per line, so that what was measured before a crash is kept. Standard output and error belong to libraries.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> int:
    """Run the job; 0 when every event was written."""
    job = json.loads(Path(arguments[0]).read_bytes())
    with os.fdopen(int(arguments[1]), "w", encoding="utf-8") as events:

        def emit(event: str, **values: Any) -> None:
            print(json.dumps({"event": event, **values}), file=events, flush=True)

        if job["amd_ops_path"]:
            sys.path.append(job["amd_ops_path"])
        from rocm_overlay.install.hook import SourceFinder

        finder = SourceFinder(job["sources"])
        with finder:
            start = time.perf_counter()
            from rocm_overlay.bench import measure, trace

            emit("imported", seconds=time.perf_counter() - start)
            try:
                {**measure.TASKS, "profile": trace.run}[job["task"]](job, emit)
            except measure.Unfit as error:
                emit("unfit", message=str(error))
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the parent has gone: there is no one to tell
        sys.exit(main(sys.argv[1:]))
