"""One process of the interpreter under test: loads the model with one build of its code, measures one cell, ends.

Started as ``python -m rocm_overlay.bench.worker JOB FD``.
"""

from __future__ import annotations

import time

from rocm_overlay.worker import end, serving


def main(arguments: list[str]) -> None:
    """Run the job."""
    with serving(arguments) as (job, emit):
        start = time.perf_counter()
        from rocm_overlay.bench import measure, trace

        emit("imported", seconds=time.perf_counter() - start)
        try:
            {**measure.TASKS, "profile": trace.run}[job["task"]](job, emit)
        except measure.Unfit as error:
            emit("unfit", message=str(error))


if __name__ == "__main__":
    end(main)
