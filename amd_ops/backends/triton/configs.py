"""Choose a kernel's tile: rows (or heads) and columns per program, and waves; at first from the chip's wave size.

Sixteen bytes a thread is what one wide load brings; a program of fewer threads than work keeps several in flight.
"""

from __future__ import annotations

from dataclasses import dataclass

from .layout import power_of_two
from .target import Target

FEW = 64
"""Below this many rows a launch cannot fill a GPU, and small programs are best."""
MAX_BLOCK = 16384
"""The longest row that a program holds in registers; a longer one is walked in steps of half of this."""
_PER_THREAD = 8
_MAX_THREADS = 1024


@dataclass(frozen=True)
class Config:
    """rows: rows or heads of a program; block: columns, a power of two; warps: waves."""

    rows: int
    block: int
    warps: int


def waves(elements: int, wave: int) -> int:
    """Return how many waves share ``elements``: a power of two, at most 1024 threads."""
    return min(max(power_of_two(elements // (_PER_THREAD * wave)), 1), _MAX_THREADS // wave, 16)


def for_rows(size: int, few: bool, target: Target) -> Config:
    """Return the cut of a kernel that needs whole rows of ``size`` columns."""
    block = power_of_two(size)
    if block > MAX_BLOCK:
        block = MAX_BLOCK // 2
    rows = max((512 if few else 2048) // block, 1)
    return Config(rows, block, waves(rows * block, target.wave))


def for_columns(size: int, few: bool, target: Target) -> Config:
    """Return the cut of an element-wise kernel over rows of ``size`` columns."""
    block = min(power_of_two(size), 512 if few else 1024)
    return Config(1, block, waves(block, target.wave))


def for_heads(size: int, few: bool, target: Target) -> Config:
    """Return the cut of a kernel over heads of ``size`` rotated half columns."""
    block = power_of_two(size)
    wave_rows = power_of_two(max(_PER_THREAD * target.wave // block, 1))  # heads whose halves fill one wave
    rows = min(wave_rows if few else 2 * wave_rows, 32)
    return Config(rows, block, waves(rows * block, target.wave))


def neighbours(config: Config, target: Target) -> list[Config]:
    """Return the cuts worth timing against ``config``, itself first."""
    most = min(_MAX_THREADS // target.wave, 16)
    warps = [w for w in (config.warps, config.warps // 2, config.warps * 2) if 1 <= w <= most]
    more = [Config(config.rows * 2, config.block, config.warps)] if config.rows * config.block < 4096 else []
    fewer = [Config(config.rows // 2, config.block, config.warps)] if config.rows > 1 else []
    return [*(Config(config.rows, config.block, w) for w in warps), *more, *fewer]
