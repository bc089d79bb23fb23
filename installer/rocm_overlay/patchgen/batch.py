"""Many files: from the cache where they are known, else on every core, with a progress bar where somebody looks."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TextIO

from rocm_overlay.overlays.recipes import recipe_set

from ..progress import Step, progress
from .cache import Cache, cache_folder
from .engine import Result, generate
from .errors import InternalError, PatchgenError
from .recipe import RecipeSet

# Fewer files than this are done before a second process has started.
_WORTH_PROCESSES = 6


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
    errors: tuple[PatchgenError, ...]
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
    err: TextIO | None = None,
) -> Batch:
    """Generate every input.

    Args:
        inputs: the files.
        recipes: the released set, which other processes can load for themselves.
        jobs: processes; default one per core. 1 stays in this process.
        cache: where results are kept; default the user's cache.
        err: where the progress goes; None shows none.
    """
    cache = cache or Cache(cache_folder(), recipes)
    found: dict[int, Result | PatchgenError] = {}
    missing: list[tuple[int, bytes]] = []
    for number, one in enumerate(inputs):
        try:
            data = one.read()
        except PatchgenError as error:
            found[number] = error
            continue
        known = cache.get(one.path, data)
        if known is None:
            missing.append((number, data))
        else:
            found[number] = known
    cached = sum(isinstance(one, Result) for one in found.values())
    with _progress(len(inputs), len(found), err) as step:
        _make(inputs, missing, recipes, jobs or cores(), found, step)
    made = [result for number, _ in missing if isinstance(result := found[number], Result)]
    if not all(cache.put(result) for result in made) and err is not None:
        print(f"note: results are not kept, {cache.folder} cannot be written", file=err)
    ordered = [found[number] for number in range(len(inputs))]
    return Batch(
        tuple(one for one in ordered if isinstance(one, Result)),
        tuple(one for one in ordered if isinstance(one, PatchgenError)),
        cached,
    )


def _make(
    inputs: Sequence[Input],
    missing: Sequence[tuple[int, bytes]],
    recipes: RecipeSet,
    jobs: int,
    found: dict[int, Result | PatchgenError],
    step: Step,
) -> None:
    if jobs < 2 or len(missing) < _WORTH_PROCESSES:
        for number, data in missing:
            found[number] = _one(data, inputs[number].path, inputs[number].label, recipes)
            step(inputs[number].label)
        return
    # Fresh processes: a forked one would inherit whatever threads the caller has.
    context = multiprocessing.get_context("spawn")
    largest_first = sorted(missing, key=lambda one: (-len(one[1]), one[0]))
    try:
        with ProcessPoolExecutor(min(jobs, len(missing)), mp_context=context) as pool:
            futures = {
                pool.submit(_elsewhere, data, inputs[number].path, inputs[number].label, recipes.digest): number
                for number, data in largest_first
            }
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                step(inputs[futures[future]].label)
    except BrokenProcessPool as error:
        raise InternalError("a generating process ended by itself", remedy="run again with --jobs 1") from error


def _elsewhere(data: bytes, path: str, label: str, digest: str) -> Result | PatchgenError:
    """What another process does: load the released recipes, and make one file."""
    recipes = recipe_set()
    if recipes.digest != digest:
        return InternalError("the recipes changed while they were applied", remedy="run again")
    return _one(data, path, label, recipes)


def _one(data: bytes, path: str, label: str, recipes: RecipeSet) -> Result | PatchgenError:
    try:
        return generate(data, path, recipes, label=label)
    except PatchgenError as error:
        return error


def _progress(total: int, done: int, err: TextIO | None) -> AbstractContextManager[Step]:
    """Show nothing for a single file, and where there is no bar a line per 50 files."""
    if err is None or total < 2 or done == total:
        return nullcontext(lambda text: None)
    count = done

    def line(text: str) -> None:
        nonlocal count
        count += 1
        if count % 50 == 0:
            print(f"{count} of {total} files", file=err)

    return progress(err, total, "generating", elsewhere=line, done=done)
