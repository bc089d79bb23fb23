"""Global memory of a launch. Every access is checked: against the buffers that the launch was given, for reads of bytes
that nobody wrote, and for two lanes that store to one byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GUARD = 4096
BASE = 0x7F00_0000_0000


class Fault(Exception):
    """An access that no buffer covers, a read of bytes nobody wrote, two lanes that write one byte."""


@dataclass
class Buffer:
    """One tensor's bytes: where they begin in the arena, and how many there are."""

    name: str
    start: int
    size: int


class Memory:
    """One arena; buffers lie between guard zones that nobody may touch."""

    def __init__(self) -> None:
        self.data = np.zeros(0, np.uint8)
        self.owner = np.zeros(0, np.uint8)
        self.known = np.zeros(0, bool)
        self.written = np.zeros(0, np.uint16)
        self.buffers: list[Buffer] = []
        self.strict = True  # one instruction may not store a byte twice, not even the same value
        self.stats = {"loads": 0, "stores": 0, "masked": 0}

    def add(self, name: str, data: np.ndarray, known: bool = True, align: int = 256) -> int:
        """Place bytes and return their address. ``known=False``: reading before writing is a fault."""
        at = len(self.data) + GUARD
        at = -(-at // align) * align
        end = at + len(data) + GUARD
        grow = end - len(self.data)
        self.data = np.concatenate([self.data, np.full(grow, 0xCD, np.uint8)])
        self.owner = np.concatenate([self.owner, np.zeros(grow, np.uint8)])
        self.known = np.concatenate([self.known, np.zeros(grow, bool)])
        self.written = np.concatenate([self.written, np.zeros(grow, np.uint16)])
        self.buffers.append(Buffer(name, at, len(data)))
        self.data[at : at + len(data)] = data
        self.owner[at : at + len(data)] = len(self.buffers)
        self.known[at : at + len(data)] = known
        return BASE + at

    def named(self, name: str) -> Buffer:
        """The buffer of this name."""
        return next(b for b in self.buffers if b.name == name)

    def bytes_of(self, name: str) -> np.ndarray:
        """What a buffer holds now."""
        b = self.named(name)
        return self.data[b.start : b.start + b.size]

    def writes_of(self, name: str) -> np.ndarray:
        """How often each byte of a buffer was stored."""
        b = self.named(name)
        return self.written[b.start : b.start + b.size]

    def _at(self, address: np.ndarray, size: int, what: str, where: str) -> np.ndarray:
        at = address.astype(np.int64) - BASE
        bad = (at < 0) | (at + size > len(self.data))
        if not bad.any():
            first, last = self.owner[at], self.owner[at + size - 1]
            bad = (first == 0) | (first != last)
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            near = self.near(int(at[i]))
            raise Fault(
                f"{where}: {what} of {size} bytes at {int(address[i]):#x} outside every buffer ({near}); "
                f"{int(bad.sum())} of {len(at)} lanes"
            )
        if (at % min(size, 4)).any():
            raise Fault(f"{where}: {what} of {size} bytes, misaligned")
        return at

    def near(self, at: int) -> str:
        """Say where an offset lies, seen from the nearest buffer."""
        best = min(self.buffers, key=lambda b: min(abs(at - b.start), abs(at - b.start - b.size)), default=None)
        return "no buffers" if best is None else f"{at - best.start:+d} from the start of {best.name}, {best.size} long"

    def load(self, address: np.ndarray, size: int, where: str) -> np.ndarray:
        """[n] addresses -> [n, size] bytes."""
        at = self._at(address, size, "load", where)
        index = at[:, None] + np.arange(size)
        if not self.known[index].all():
            i = int(np.flatnonzero(~self.known[index].all(axis=1))[0])
            raise Fault(f"{where}: load of bytes nobody wrote ({self.near(int(at[i]))})")
        self.stats["loads"] += len(at)
        return self.data[index]

    def store(self, address: np.ndarray, values: np.ndarray, where: str) -> None:
        """[n] addresses, [n, size] bytes."""
        size = values.shape[1]
        at = self._at(address, size, "store", where)
        index = (at[:, None] + np.arange(size)).ravel()
        flat = values.ravel()
        self.data[index] = flat
        if len(np.unique(index)) != len(index) and (self.strict or (self.data[index] != flat).any()):
            raise Fault(f"{where}: two lanes store to the same byte ({self.near(int(at[0]))})")
        self.known[index] = True
        self.written[index] += 1
        self.stats["stores"] += len(at)
