"""One wave and a few lines of assembler: how single instructions are tested."""

from __future__ import annotations

from typing import Any

import numpy as np

from .codeobject import Kernel
from .instructions import build
from .machine import Machine
from .memory import Memory
from .text import parse_one

Array = np.ndarray


class Wave:
    """A wave of ``arch`` whose registers are set and read by name; every lane is active."""

    def __init__(self, arch: str = "gfx942", lds: int = 0, waves: int = 1, jitter: bool = False) -> None:
        self.lanes = 64 if arch.startswith("gfx9") else 32
        kernel = Kernel("one", 0, lds, 0, 0, 0, 0, 0, 0 if self.lanes == 64 else 1 << 10, 0)
        self.memory = Memory()
        block = (self.lanes * waves, 1, 1)
        self.machine = Machine([], kernel, self.memory, arch, build, (1, 1, 1), block, 0, lds, jitter=jitter)

    def set(self, register: str, value: Any, dtype: Any = np.uint32) -> Wave:
        """Fill v0 and the like from an array of lanes (or one number), s0 from a number; 64-bit types take two."""
        bits = np.ascontiguousarray(np.asarray(value, dtype))
        words = bits.view(np.uint16).astype(np.uint32)[..., None] if bits.dtype.itemsize == 2 else None
        if words is None:
            words = bits.reshape(*bits.shape, 1).view(np.uint32)
        bank, first = register[0], int(register[1:])
        for n in range(words.shape[-1]):
            if bank == "s":
                self.machine.S[first + n] = words[..., n]
            else:
                target = self.machine.V if bank == "v" else self.machine.A
                target[first + n] = np.broadcast_to(words[..., n], (self.lanes,))
        return self

    def get(self, register: str, dtype: Any = np.uint32) -> Array:
        """[lanes] of a vector register, or the number in a scalar one."""
        bank, first = register[0], int(register[1:])
        size = max(np.dtype(dtype).itemsize // 4, 1)
        if bank == "s":
            words = np.stack([self.machine.S[first + n, 0] for n in range(size)], axis=-1)
        else:
            source = self.machine.V if bank == "v" else self.machine.A
            words = np.stack([source[first + n, 0] for n in range(size)], axis=-1)
        words = np.ascontiguousarray(words)
        if np.dtype(dtype).itemsize == 2:
            return words.astype(np.uint16).view(dtype)[..., 0]
        return words.view(dtype)[..., 0]

    def run(self, *lines: str) -> Wave:
        """Execute lines of assembler."""
        program = [parse_one(line, n) for n, line in enumerate((*lines, "s_endpgm"))]
        self.machine.restart(program)
        self.machine.run()
        return self
