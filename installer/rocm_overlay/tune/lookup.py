"""Which row aiter picks for a shape: the exact M, then M padded finely, then to a power of two."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .device import Device
from .table import Key, Row

Level = Literal["exact", "fine", "coarse"]


def padded_m(m: int, n: int, level: Level) -> int:
    """Return the M that aiter looks up at a level. Fine: multiples of 16 to 128 by size; coarse: a power of two."""
    if level == "exact":
        return m
    if level == "fine":
        step = 16 if m <= 256 else 32 if m <= 1024 else 64 if m <= 4096 else 128
        return -(-m // step) * step
    if m > 8192 and n > 4096:
        return 8192
    return 1 if m <= 1 else 1 << (m - 1).bit_length()


@dataclass(frozen=True)
class Hit:
    """The row a lookup finds, and the M under which it was found."""

    row: Row
    m: int
    level: Level


class TableIndex:
    """The rows of one device, found the way aiter finds them.

    The first row of a repeated key wins: callers pass merged rows, whose keys are unique.
    """

    def __init__(self, device: Device, rows: Iterable[Row]) -> None:
        self.device = device
        self._rows: dict[Key, Row] = {}
        for row in rows:
            if row.key.device == device:
                self._rows.setdefault(row.key, row)

    def __len__(self) -> int:
        return len(self._rows)

    def find(
        self, m: int, n: int, k: int, *, bias: bool, dtype: str, outdtype: str | None = None, bpreshuffle: bool = False
    ) -> Hit | None:
        """Return what aiter would use for this GEMM, None when it falls back to its default."""
        levels: tuple[Level, ...] = ("exact", "fine", "coarse")
        for level in levels:
            at = padded_m(m, n, level)
            key = Key(self.device.gfx, self.device.cu_num, at, n, k, bias, dtype, outdtype or dtype, False, bpreshuffle)
            row = self._rows.get(key)
            if row is not None:
                return Hit(row, at, level)
        return None


def default_libtype(device: Device, m: int, n: int, k: int, dtype: str) -> str:
    """Return what aiter runs on a miss without pre-shuffled weights: its skinny kernels for tiny shapes, else torch."""
    cu = device.cu_num
    tiny = (
        (m == 1 and n <= 2 * cu and k <= 9216)
        or (1 < m <= 4 and n <= cu and k <= 9216)
        or (4 < m <= 8 and n <= cu and k <= 5120)
        or (8 < m <= 16 and n <= cu and k <= 256)
    )
    on_cdna = device.gfx in ("gfx90a", "gfx942", "gfx950")
    return "skinny" if tiny and on_cdna and k % 8 == 0 and dtype in ("torch.bfloat16", "torch.float16") else "torch"
