"""`torchrun ... -m rocm_overlay bench`: the command runs on every rank, and each cell on all of them at once.

Rank 0 leads: it plans, tells the others which cell comes next, takes what they measured and alone writes. The commands
hold a gloo group for that; the processes that measure form a group of their own per cell, on a port that rank 0 picks.
A step is over when its slowest rank is, so the merged samples are the largest of all ranks; each rank's own are kept.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from ..errors import UsageError
from .process import Process

Measure = Callable[[Mapping[str, str]], Process]
Order = tuple[str, int]
# A cell may take as long as its own limit allows; torchrun ends everybody when one rank dies.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Place:
    """Where this process stands among those that a launcher started."""

    rank: int = 0
    size: int = 1


def place() -> Place:
    """Read RANK and WORLD_SIZE, as torchrun sets them."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return Place(int(os.environ["RANK"]), size) if size > 1 and "RANK" in os.environ else Place()


class Team(Protocol):
    """Whoever takes part in a measurement."""

    def measure(self, order: Order, run: Measure) -> Process:
        """Run one cell of a round everywhere and return what all of it took."""

    def dismiss(self) -> None:
        """Tell that nothing comes any more."""


class Alone:
    """One process, no launcher."""

    def measure(self, order: Order, run: Measure) -> Process:
        """Run it here."""
        return run({})

    def dismiss(self) -> None:
        """Nobody waits."""


class Crew:
    """The commands of all ranks, connected."""

    def __init__(self, place: Place) -> None:
        import torch.distributed

        self.place = place
        self._dist: Any = torch.distributed
        self._dist.init_process_group("gloo", timeout=PATIENCE)

    def measure(self, order: Order, run: Measure) -> Process:
        """Rank 0: have every rank run it, and merge."""
        return merge(self._run(self._tell((order, _free_port())), run))

    def follow(self, run: Callable[[Order, Mapping[str, str]], Process]) -> None:
        """The other ranks: run what rank 0 says until it says no more."""
        while (told := self._tell(None)) is not None:
            order = told[0]
            self._run(told, lambda env, order=order: run(order, env))  # type: ignore[misc]
        self._dist.destroy_process_group()

    def dismiss(self) -> None:
        """Rank 0: let the others go."""
        self._tell(None)
        self._dist.destroy_process_group()

    def _tell(self, told: tuple[Order, int] | None) -> tuple[Order, int] | None:
        box = [told]
        self._dist.broadcast_object_list(box, src=0)
        return box[0]

    def _run(self, told: tuple[Order, int] | None, run: Measure) -> list[Process]:
        assert told is not None
        # The group of the measuring processes: torchrun's own store belongs to the commands.
        mine = run({"MASTER_PORT": str(told[1]), "TORCHELASTIC_USE_AGENT_STORE": "False"})
        every: list[Any] | None = [None] * self.place.size if self.place.rank == 0 else None
        self._dist.gather_object((mine, _digest(mine)), every, dst=0)
        return agreed(every or [])


def join(place: Place, mode: str) -> Team:
    """Return the team of this process. Raises UsageError for what several ranks cannot measure."""
    if place.size == 1:
        return Alone()
    if mode == "train":
        message = "--mode train is measured in one process"
        remedy = "use generate or forward under torchrun: stock leaves gradients of head norms unreduced there"
        raise UsageError("bad-mode", message, remedy=remedy)
    return Crew(place)


def agreed(gathered: list[tuple[Process, str]]) -> list[Process]:
    """Return the processes of (process, hash of its outputs); the first one is marked where two hashes differ."""
    if len({digest for process, digest in gathered if process.status == "ok"}) > 1:
        gathered[0][0].status, gathered[0][0].message = "disagree", "the ranks computed different outputs"
    return [process for process, _ in gathered]


def merge(processes: list[Process]) -> Process:
    """What rank 0 measured, with the time of the slowest rank in every sample and the peak of every memory figure."""
    first = processes[0]
    kept = [
        {name: getattr(process, name) for name in ("status", "message", "loaded_s", "first", "runs", "memory", "host")}
        for process in processes
    ]
    bad = next(((rank, p) for rank, p in enumerate(processes) if p.status != "ok"), None)
    if bad is not None:
        first.status, first.message = bad[1].status, f"rank {bad[0]}: {bad[1].message}"
    else:
        first.runs = [slowest(runs) for runs in zip(*(process.runs for process in processes), strict=True)]
        first.first = slowest(tuple(process.first for process in processes))
        first.loaded_s = max(process.loaded_s or 0.0 for process in processes)
        first.memory = slowest(tuple(process.memory for process in processes))
        first.bandwidth = min(process.bandwidth or 0.0 for process in processes)
    first.ranks = kept
    return first


def slowest(samples: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """The largest value of every key; lists (one entry per token) are compared entry by entry."""
    found: dict[str, Any] = {}
    for key, value in samples[0].items():
        values = [sample[key] for sample in samples]
        found[key] = [max(step) for step in zip(*values, strict=True)] if isinstance(value, list) else max(values)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _digest(process: Process) -> str:
    """Hash the outputs that this rank computed."""
    path = Path(process.values or "")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
