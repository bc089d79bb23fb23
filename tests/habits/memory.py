"""What a piece of work does to torch's memory on the CPU, as torch's own allocator counts it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch


class Used(NamedTuple):
    """Bytes that outlive the work (less than zero: it freed some), and the most that it had at once."""

    left: int
    peak: int


def used(work: Callable[[], object]) -> Used:
    """Run ``work``; its result is dropped before the count ends. The garbage of earlier tests goes first."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    after = [0, *accumulate(size for _, size in sorted(changes, key=lambda change: change[0]))]
    return Used(after[-1], max(after))
