"""Many files: from the cache where they are known, else on every core, with a progress bar where somebody looks."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from rocm_overlay.overlays.recipes import recipe_set

from ..console import Step, notes, progress
from ..errors import InternalError, OverlayError
from .cache import Cache, cache_folder
from .engine import Result, generate
from .recipe import RecipeSet

R = TypeVar("R")

# Fewer files than this are done before a second process has started.
WORTH_PROCESSES = 6


@dataclass(frozen=True)
class Input:
    """One file to read: its path inside the package, its name in messages, and how to get the bytes."""

    path: str
    label: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Batch:
    """Results and errors, each in the order of the inputs; ``cached`` counts those that were known."""

    results: tuple[Result, ...]
    errors: tuple[OverlayError, ...]
    cached: int


def cores() -> int:
    """How many processes this one may keep busy."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def run_batch(
    inputs: Sequence[Input],
    recipes: RecipeSet,
    *,
    jobs: int | None = None,
    cache: Cache | None = None,
    shown: bool = False,
) -> Batch:
    """Generate every input.

    Args:
        inputs: the files.
        recipes: the released set, which other processes can load for themselves.
        jobs: processes; default one per core. 1 stays in this process.
        cache: where results are kept; default the user's cache.
        shown: tell on stderr how far it is.
    """
    cache = cache or Cache(cache_folder(), recipes)
    found: dict[int, Result | OverlayError] = {}
    missing: list[tuple[int, bytes]] = []
    for number, one in enumerate(inputs):
        try:
            data = one.read()
        except OverlayError as error:
            found[number] = error
            continue
        known = cache.get(one.path, data)
        if known is None:
            missing.append((number, data))
        else:
            found[number] = known
    cached = sum(isinstance(one, Result) for one in found.values())
    kept = True
    with show_progress(len(inputs), len(found), shown, "generating") as step:

        def done(number: int, made: Result | OverlayError) -> None:
            nonlocal kept
            found[number] = made
            # At once: a run that is interrupted goes on from here.
            if isinstance(made, Result):
                kept = cache.put(made) and kept
            step(inputs[number].label)

        _make(inputs, missing, recipes, jobs or cores(), done)
    if not kept and shown:
        notes([f"results are not kept, {cache.folder} cannot be written"])
    ordered = [found[number] for number in range(len(inputs))]
    return Batch(
        tuple(one for one in ordered if isinstance(one, Result)),
        tuple(one for one in ordered if isinstance(one, OverlayError)),
        cached,
    )


def _make(
    inputs: Sequence[Input],
    missing: Sequence[tuple[int, bytes]],
    recipes: RecipeSet,
    jobs: int,
    done: Callable[[int, Result | OverlayError], None],
) -> None:
    if jobs < 2 or len(missing) < WORTH_PROCESSES:
        for number, data in missing:
            done(number, _one(data, inputs[number].path, inputs[number].label, recipes))
        return
    largest_first = sorted(missing, key=lambda one: (-len(one[1]), one[0]))
    tasks = [(data, inputs[number].path, inputs[number].label, recipes.digest) for number, data in largest_first]
    spread(_elsewhere, tasks, jobs, lambda index, made: done(largest_first[index][0], made))


def spread(
    work: Callable[..., R], tasks: Sequence[tuple[object, ...]], jobs: int, done: Callable[[int, R], None]
) -> None:
    """Call ``work(*task)`` for every task in processes of its own; ``done(index, result)`` here, as each comes back.

    An exception here, Ctrl-C above all, ends the processes at once: nobody waits for what is not finished.

    Raises:
        InternalError: a process ended by itself.
    """
    # Fresh processes: a forked one would inherit whatever threads the caller has.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context)
    try:
        with _interrupts_stay_here():
            futures = {pool.submit(work, *task): index for index, task in enumerate(tasks)}
        for future in as_completed(futures):
            done(futures[future], future.result())
    except BrokenProcessPool as error:
        raise InternalError("a generating process ended by itself", remedy="run again with --jobs 1") from error
    except BaseException:
        # Who dies in the middle of a message leaves the pool's threads waiting for the rest of it, as this process has
        # both ends of either pipe: they are told that nobody is there any more. The executor has no public way.
        ends = (getattr(pool, "_result_queue", None), "_writer"), (getattr(pool, "_call_queue", None), "_reader")
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        for queue, end in ends:
            if hasattr(queue, end):
                getattr(queue, end).close()
        raise
    finally:
        # Always waits for the pool's own thread: at exit Python would wake one that is closing what it is woken by.
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_stay_here() -> Iterator[None]:
    """Start processes that SIGINT does not reach: a terminal sends it to all, and each would print a traceback.

    They inherit what is blocked, from their first instruction on; this process gets a signal that came meanwhile.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _elsewhere(data: bytes, path: str, label: str, digest: str) -> Result | OverlayError:
    """What another process does: load the released recipes, and make one file."""
    recipes = recipe_set()
    if recipes.digest != digest:
        return InternalError("the recipes changed while they were applied", remedy="run again")
    return _one(data, path, label, recipes)


def _one(data: bytes, path: str, label: str, recipes: RecipeSet) -> Result | OverlayError:
    try:
        return generate(data, path, recipes, label=label)
    except OverlayError as error:
        return error


def show_progress(total: int, done: int, shown: bool, doing: str) -> AbstractContextManager[Step]:
    """Show nothing for a single file."""
    if not shown or total < 2 or done == total:
        return nullcontext(lambda text: None)
    return progress(total, doing, done=done)
