"""Where jobs run: in workers on this machine, or in those of a Ray cluster. Nothing in here knows what a job is."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from ..errors import TargetError, UsageError
from .pool import Answer, Calls, Executor, Pool, Worker, answers

__all__ = ["EXECUTORS", "Answer", "Calls", "Executor", "Pool", "Worker", "answers", "check", "make_executor"]

EXECUTORS = ("process", "ray")


def check(kind: str, workers: int | None = None) -> None:
    """Raise UsageError for an executor or a number that is none, TargetError where Ray is not installed."""
    if kind not in EXECUTORS:
        remedy = f"use one of {', '.join(EXECUTORS)}"
        raise UsageError("bad-executor", f"--executor is {kind!r}", remedy=remedy)
    if workers is not None and workers < 1:
        raise UsageError("bad-workers", f"--workers is {workers}", remedy="use 1 or more")
    if kind == "ray" and find_spec("ray") is None:
        remedy = "run `pip install ray`"
        raise TargetError("no-ray", "the executor ray needs Ray, which is not installed", remedy=remedy)


def make_executor(
    kind: str, workers: int | None, make: Callable[[], Worker] = Calls, *, whole: bool = False
) -> Executor:
    """Return the executor that ``process`` or ``ray`` names, with ``workers`` workers (None: 1 here, all of a cluster).

    ``whole``: on a cluster every worker has a GPU to itself, or a node where there are no GPUs, so that times count.
    """
    check(kind, workers)
    if kind == "ray":
        from .ray import RayPool

        return RayPool(workers, make, whole=whole)
    return Pool([make() for _ in range(workers or 1)])
