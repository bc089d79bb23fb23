"""Local memory (LDS) of every workgroup, with a watch for races: a byte that one wave touches between two barriers may
not be written by another, unless with the same value.
"""

from __future__ import annotations

import numpy as np

from .arithmetic import Array
from .memory import Fault


class LocalMemory:
    """[groups, size] bytes. ``epoch`` counts the barriers that a workgroup has passed."""

    def __init__(self, groups: int, size: int, waves: int, strict: bool = True) -> None:
        shape = (groups, max(size, 1))
        self.size, self.waves, self.strict = size, waves, strict
        self.data = np.full(shape, 0xCD, np.uint8)
        self.known = np.zeros(shape, bool)
        self.epoch = np.zeros(groups, np.int64)
        self.writer = np.full(shape, -1, np.int64)  # epoch * waves + wave
        self.reader = np.full(shape, -1, np.int64)

    def _bytes(self, group: Array, address: Array, size: int, what: str) -> tuple[Array, Array]:
        if (address < 0).any() or (address + size > self.size).any():
            raise Fault(f"{what} at {int(address.min())} to {int(address.max()) + size} of {self.size} bytes of LDS")
        return group[:, None], address[:, None] + np.arange(size)

    def load(self, wave: Array, group: Array, address: Array, size: int, where: str) -> Array:
        """[n] waves, their workgroups and addresses -> [n, size] bytes."""
        index = self._bytes(group, address, size, f"{where}: load")
        if not self.known[index].all():
            raise Fault(f"{where}: load of bytes of LDS that nobody wrote")
        if self.strict:
            began = self.epoch[group] * self.waves
            writer = self.writer[index]
            if ((writer >= began[:, None]) & (writer != (began + wave)[:, None])).any():
                raise Fault(f"{where}: LDS race: a wave reads what another wrote since the last barrier")
            self.reader[index] = (began + wave)[:, None]
        return self.data[index]

    def store(self, wave: Array, group: Array, address: Array, raw: Array, where: str) -> None:
        """[n] waves, their workgroups and addresses, [n, size] bytes."""
        index = self._bytes(group, address, raw.shape[1], f"{where}: store")
        if self.strict:
            began = (self.epoch[group] * self.waves)[:, None]
            mine = began + wave[:, None]
            reader, writer = self.reader[index], self.writer[index]
            if ((reader >= began) & (reader != mine)).any():
                raise Fault(f"{where}: LDS race: a wave writes what another read since the last barrier")
            if ((writer >= began) & (writer != mine) & (self.data[index] != raw)).any():
                raise Fault(f"{where}: LDS race: two waves write different values between barriers")
            self.writer[index] = mine
        self.data[index] = raw
        self.known[index] = True
