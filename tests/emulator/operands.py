"""Operands of assembler text: registers, and constants as in the ISA documents' table of inline constants."""

from __future__ import annotations

import numpy as np

from .arithmetic import F32, F64, U32, U64

VCC, EXEC, M0 = 106, 126, 125
"""Where the named scalar registers are kept."""


def number(token: str, kind: str) -> int | None:
    """The bits of a constant operand for an operand of ``kind``; None if it is no constant."""
    try:
        value = int(token, 0)
        if kind == "d":
            return (value << 32) & 0xFFFFFFFFFFFFFFFF if not -16 <= value <= 64 else value & 0xFFFFFFFFFFFFFFFF
        if kind in "UI":
            return value & 0xFFFFFFFFFFFFFFFF
        return value & 0xFFFFFFFF
    except ValueError:
        pass
    try:
        value = float(token)
    except ValueError:
        return None
    if token in ("0.15915494", "0.15915494309189532", "0.1591549430918953", "0.15915494309189535"):
        return {"h": 0x3118, "d": 0x3FC45F306DC9C882}.get(kind, 0x3E22F983)
    if kind == "h":
        return int(np.float16(value).view(np.uint16))
    if kind in "dUI":
        return int(F64(value).view(U64))
    return int(F32(value).view(U32))


SPECIAL = {
    "vcc": VCC,
    "vcc_lo": VCC,
    "vcc_hi": VCC + 1,
    "exec": EXEC,
    "exec_lo": EXEC,
    "exec_hi": EXEC + 1,
    "m0": M0,
    "flat_scratch": 102,
    "flat_scratch_lo": 102,
    "flat_scratch_hi": 103,
    "xnack_mask": 104,
}


def register(token: str) -> tuple[str, int, int] | None:
    """(file, first, count) of ``v[0:3]``, ``s5``, ``vcc``; None if the token names no register."""
    if token in SPECIAL:
        return "s", SPECIAL[token], 2 if token in ("vcc", "exec", "flat_scratch") else 1
    for prefix, bank, base in (("ttmp", "s", 108), ("v", "v", 0), ("s", "s", 0), ("a", "a", 0)):
        if token.startswith(prefix):
            rest = token[len(prefix) :]
            if rest.isdigit():
                return bank, base + int(rest), 1
            if rest.startswith("[") and rest.endswith("]"):
                first, _, last = rest[1:-1].partition(":")
                return bank, base + int(first), int(last or first) - int(first) + 1
    return None
