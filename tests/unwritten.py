"""Memory that a kernel did not write must not hold the right answer: what ``torch.empty`` gives begins as NaN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Fill what is allocated inside, a float with NaN and an integer with its largest value, as torch's deterministic
    mode does. Else the allocator may hand out the block that the last run's answer lay in, and a kernel that leaves it
    as it is seems right.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
