"""The interface, and the pool of this machine: a few workers, each driven by a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
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
    """Several workers, each driven by a thread; a job goes to the next idle one."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = list(workers)
        self._jobs: queue.SimpleQueue[tuple[Future[Answer], Any] | None] = queue.SimpleQueue()
        try:
            for worker in self._workers:
                worker.start()
        except BaseException:
            self._end_workers()
            raise
        # Not a ThreadPoolExecutor: at the end of the process that waits for jobs whose answer nobody wants any more.
        for worker in self._workers:
            threading.Thread(target=self._serve, args=(worker,), daemon=True, name="overlay-executor").start()

    def submit(self, job: Any) -> Future[Answer]:
        """Queue a job."""
        future: Future[Answer] = Future()
        self._jobs.put((future, job))
        return future

    def _serve(self, worker: Worker) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(worker.ask(job))
                except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
                    future.set_exception(error)

    def close(self) -> None:
        """Drop what is queued and end all workers. A job that still runs, as after an interrupt, is not waited for."""
        with contextlib.suppress(queue.Empty):
            while item := self._jobs.get_nowait():
                item[0].cancel()
        for _ in self._workers:
            self._jobs.put(None)
        self._end_workers()

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.close()


def answers(executor: Executor, jobs: Sequence[Any]) -> Iterator[tuple[int, Answer]]:
    """Yield (number of the job, answer) as jobs are done. A worker's death is an answer, too: see Executor."""
    numbers = {executor.submit(job): number for number, job in enumerate(jobs)}
    for future in as_completed(numbers):
        yield numbers[future], future.result()
