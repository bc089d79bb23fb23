"""Which cut of a kernel is fastest on this chip: timed when a variant is first probed, kept in a file per chip.

The file (``$XDG_CACHE_HOME/amd-overlay/triton/<arch>-<triton>.json``) is read when ops are bound and written after a
probe; no forward touches it. Whatever is wrong with it is counted in ``notes``, told once, and the first guess or a
new timing takes its place. A chip is a GPU here: the interpreter is never timed.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Hashable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
import triton

from ... import toggles
from ...checks import OutOfMemoryError
from ...dispatch import capturing
from ...folders import user_folder
from .configs import Config, neighbours
from .target import Target, environment

SCHEMA = "amd-ops.triton-cuts/1"
ROUNDS = 5

notes: dict[str, int] = {}
"""What went wrong with tuning, by reason: never fatal, always counted."""

_logger = logging.getLogger("amd_ops")
_files: dict[Path, dict[str, Config]] = {}


class Table:
    """The cuts of one kernel on one target."""

    def __init__(self, kernel: str, target: Target) -> None:
        self.kernel, self.target = kernel, target
        self.cuts: dict[Hashable, Config] = {}
        self.path = None if target.interpreted else cache_file(target, environment())
        self.known = {} if self.path is None else _load(self.path)

    def get(self, key: Hashable) -> Config | None:
        """Return the settled cut for ``key``, if any: one dictionary look-up."""
        return self.cuts.get(key)

    def put(self, key: Hashable, guess: Config) -> Config:
        """Settle ``key``: what the file says, or else ``guess``."""
        self.cuts[key] = self.known.get(self._name(key), guess)
        return self.cuts[key]

    def tune(self, key: Hashable, guess: Config, run: Callable[[Config], object]) -> None:
        """Time the cuts around ``guess`` once per key and chip, keep the fastest and write it down.

        ``run(cut)`` launches the kernel on real data. Not while a graph is captured, nor in the interpreter.
        """
        if self.path is None or self._name(key) in self.known or capturing():
            return
        best = fastest(neighbours(guess, self.target), run)
        if best is None:
            return
        self.cuts[key] = self.known[self._name(key)] = best
        _save(self.path, self.known)

    def _name(self, key: Hashable) -> str:
        parts = key if isinstance(key, tuple) else (key,)
        return "|".join([self.kernel, *(str(part).removeprefix("torch.") for part in parts)])


def fastest(
    cuts: list[Config], run: Callable[[Config], object], clock: Callable[[Callable[[], object]], float] | None = None
) -> Config | None:
    """Return the cut with the smallest time, or None when none runs. Interleaved, minima: other work disturbs less."""
    time = gpu_time if clock is None else clock
    times: dict[Config, float] = {}
    for cut in cuts:
        try:
            run(cut)
        except OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a cut may ask for more than the chip has; it is counted and left out
            note(f"a cut does not run: {type(error).__name__}")
        else:
            times[cut] = float("inf")
    for _ in range(ROUNDS):
        for cut in times:
            times[cut] = min(times[cut], time(functools.partial(run, cut)))
    return min(times, key=lambda cut: times[cut]) if times else None


def gpu_time(call: Callable[[], object], launches: int = 20) -> float:
    """Milliseconds of one launch, by events around ``launches`` of them. Waits for the GPU: probes only."""
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    for _ in range(launches):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / launches


def cache_file(target: Target, environ: Mapping[str, str]) -> Path | None:
    """Return where the cuts of this chip are kept, or None without a home."""
    folder = user_folder("cache", environ)
    if folder is None:
        note("no XDG_CACHE_HOME and no home folder: cuts are not kept")
        return None
    return folder / "triton" / f"{target.arch}-{triton.__version__}.json"


def note(reason: str) -> None:
    """Count something that went wrong with tuning; the first of its kind is logged."""
    if reason not in notes:
        _logger.warning("amd_ops: triton tuning: %s", reason)
    notes[reason] = notes.get(reason, 0) + 1


def _load(path: Path) -> dict[str, Config]:
    """Read a file once per process; one table of all kernels' cuts."""
    if path not in _files:
        _files[path] = _read(path)
    return _files[path]


def _read(path: Path) -> dict[str, Config]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError("schema")
        return {str(name): _cut(*cut) for name, cut in content["cuts"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        note(f"{path} is not a readable table of cuts ({type(error).__name__}) and is ignored")
        return {}


def _cut(rows: int, block: int, warps: int) -> Config:
    """Refuse cuts that no code here writes: a wrong one could walk past a row's end or fail to compile."""
    for number in (rows, block, warps):
        if type(number) is not int or not 0 < number <= 1 << 16 or number & (number - 1):
            raise ValueError("a cut's numbers are powers of two")
    return Config(rows, block, warps)


def _save(path: Path, cuts: Mapping[str, Config]) -> None:
    """Replace the file in one step; what another process has added meanwhile is kept."""
    merged = {**_read(path), **cuts}
    content = {"schema": SCHEMA, "cuts": {name: astuple(merged[name]) for name in sorted(merged)}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(temporary, path)
    except OSError as error:
        note(f"{path} cannot be written ({type(error).__name__})")


def forget() -> None:
    """Drop what was read; the next binding reads again."""
    _files.clear()
    notes.clear()


toggles.when_refreshed(forget)
