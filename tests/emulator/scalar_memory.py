"""s_load_* and s_buffer_load_*: kernel arguments, and whatever the compiler finds uniform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import I32, U32, U64, Array
from .machine import Machine
from .memory import Fault
from .operands import number
from .text import Instruction

_WORDS = {
    "dword": 1, "dwordx2": 2, "dwordx3": 3, "dwordx4": 4, "dwordx8": 8, "dwordx16": 16,
    "b32": 1, "b64": 2, "b96": 3, "b128": 4, "b256": 8, "b512": 16,
}  # fmt: skip
_PARTS = {"u16": 2, "i16": 2, "u8": 1, "i8": 1}


def build_scalar_load(m: Machine, i: Instruction) -> Callable[[Any], None]:
    """Words, or one part of a word, to scalar registers."""
    o, width = i.operands, i.name.rsplit("_", 1)[1]
    size = _PARTS.get(width) or 4 * _WORDS[width]
    at, base = m.scalar(o[0]), m.scalar(o[1])
    extra = o[2] if len(o) > 2 and o[2] != "null" else "0"
    constant = number(extra, "I")
    register = None if constant is not None else m.scalar(extra)
    offset = int(i.mods.get("offset", "0"), 0) + (constant or 0)
    buffered = "buffer" in i.name

    def run(g: Any) -> None:
        address = m.S[base, g].astype(U64) | ((m.S[base + 1, g] & U32(0xFFFF)).astype(U64) << U64(32))
        shift = np.full(address.shape, offset, np.int64)
        if register is not None:
            shift += m.S[register, g].astype(np.int64)
        if buffered and (shift + size > m.S[base + 2, g].astype(np.int64)).any():
            raise Fault(f"{i.where}: scalar buffer load out of range")
        words = _words(m.memory.load(address + shift.view(U64), size, i.where), width)
        for k in range(words.shape[1]):
            m.S[at + k, g] = words[:, k]

    return run


def _words(data: Array, width: str) -> Array:
    """[n, size] bytes to [n, words]."""
    if width not in _PARTS:
        return np.ascontiguousarray(data).view(U32)
    padded = np.zeros((len(data), 4), np.uint8)
    padded[:, : data.shape[1]] = data
    value = padded.view(U32)
    unused = 32 - 8 * data.shape[1]
    return ((value << U32(unused)).view(I32) >> I32(unused)).view(U32) if width.startswith("i") else value
