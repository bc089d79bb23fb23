"""The interface, and the pool of this machine: a few workers, each driven by a thread."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Protocol

Answer = dict[str, Any]


class Worker(Protocol):
    """Does one job after the other; never asked by two threads at once."""

    def start(self) -> None:
        """Get ready; raise an OverlayError where that cannot be."""

    def ask(self, job: Any) -> Answer:
        """Do a job."""

    def close(self) -> None:
        """End what was started."""


class Executor(Protocol):
    """Something that does jobs somewhere.

    A job whose worker died is answered with ``{"ok": False, "category": "crash", "message": why}``; what the job itself
    raises is the future's exception.
    """

    def submit(self, job: Any) -> Future[Answer]:
        """Queue a job."""

    def close(self) -> None:
        """Drop what is queued and end all workers."""


class Calls:
    """The worker whose jobs are calls: ``(function of a module, arguments...)``, giving an answer."""

    def start(self) -> None:
        """Nothing to start."""

    def ask(self, job: Any) -> Answer:
        """Call it."""
        function, *arguments = job
        answer: Answer = function(*arguments)
        return answer

    def close(self) -> None:
        """Nothing to end."""


class Pool:
    """Several workers; a job goes to the next idle one."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = list(workers)
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
            worker.start()
        self._threads = ThreadPoolExecutor(len(self._workers), thread_name_prefix="overlay-executor")

    def submit(self, job: Any) -> Future[Answer]:
        """Queue a job."""
        return self._threads.submit(self._ask, job)

    def _ask(self, job: Any) -> Answer:
        worker = self._idle.get()
        try:
            return worker.ask(job)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Drop what is queued, wait for what runs, end all workers."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()


def answers(executor: Executor, jobs: Sequence[Any]) -> Iterator[tuple[int, Answer]]:
    """Yield (number of the job, answer) as jobs are done. A worker's death is an answer, too: see Executor."""
    numbers = {executor.submit(job): number for number, job in enumerate(jobs)}
    for future in as_completed(numbers):
        yield numbers[future], future.result()
