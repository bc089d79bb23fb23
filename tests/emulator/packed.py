"""v_pk_*: two results from the halves of operands of 32 (fp16, integers) or 64 bits (fp32)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arithmetic import F32, U32, Array, Unknown, fma, fma_fp16
from .machine import Machine
from .operands import number, register
from .text import Instruction

Run = Callable[[Any], None]
Read = Callable[[Any], Array]
Function = Callable[..., Array]
_PAIRS: dict[str, Function] = {
    "v_pk_mul_f32": lambda a, b: a * b,
    "v_pk_add_f32": lambda a, b: a + b,
    "v_pk_fma_f32": fma,
}
_SHIFT = np.uint16(15)
_ANY: dict[str, Function] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "mul_lo": lambda a, b: a * b,
    "mad": lambda a, b, c: a * b + c,
    "fma": fma_fp16,
    "lshlrev": lambda a, b: b << (a & _SHIFT),
    "lshrrev": lambda a, b: b >> (a & _SHIFT),
    "ashrrev": lambda a, b: b >> (a & 15),
    "max_num": np.fmax,
    "min_num": np.fmin,
}
_KINDS = {"f16": "h", "u16": "w", "i16": "x", "b16": "w"}
_INTEGER = re.compile(r"^-?(0x)?[0-9a-fA-F]+$")


@dataclass
class _Halves:
    """Which half of each operand makes the first and the second result, and which are negated."""

    pick: tuple[list[bool], list[bool]]
    negated: tuple[list[bool], list[bool]]

    @classmethod
    def of(cls, i: Instruction) -> _Halves:
        def bits(key: str, default: str) -> list[bool]:
            return [c == "1" for c in re.findall(r"[01]", i.mods.get(key, default))]

        return cls((bits("op_sel", "000"), bits("op_sel_hi", "111")), (bits("neg_lo", "000"), bits("neg_hi", "000")))


def build_packed(m: Machine, i: Instruction) -> Run:
    """One v_pk_ instruction."""
    halves = _Halves.of(i)
    if i.name in _PAIRS or i.name == "v_pk_mov_b32":
        return _pair(m, i, halves)
    base, _, suffix = i.name.removeprefix("v_pk_").rpartition("_")
    kind = _KINDS.get(suffix)
    extremes = {"max": np.fmax if kind == "h" else np.maximum, "min": np.fmin if kind == "h" else np.minimum}
    function = {**_ANY, **extremes}.get(base)
    if kind is None or function is None:
        raise Unknown(f"instruction {i.full}")
    count = 3 if base in ("fma", "mad") else 2
    parts = [[_half(m, i.operands[1 + n], kind, halves, n, second) for n in range(count)] for second in (0, 1)]
    write = m.put(i.operands[0], "u")

    def run(g: Any) -> None:
        low, high = (function(*[part(g) for part in each]).view(np.uint16).astype(U32) for each in parts)
        write(g, low | (high << U32(16)), None)

    return run


def _half(m: Machine, token: str, kind: str, halves: _Halves, n: int, second: int) -> Read:
    pick, negated = halves.pick[second][n], halves.negated[second][n]
    if register(token) is not None:
        read = m.source(token, kind, pick)
    else:  # a constant has 32 bits of its own: fp16 ones are empty in the upper half
        bits = number(token, "u" if _INTEGER.match(token) or kind != "h" else "h")
        if bits is None:
            raise Unknown(f"operand {token}")
        part = np.array([[(bits >> 16 if pick else bits) & 0xFFFF]], np.uint16)
        constant = part.view({"h": np.float16, "x": np.int16, "w": np.uint16}[kind])
        read = lambda g: constant  # noqa: E731
    return (lambda g: -read(g)) if negated else read


def _pair(m: Machine, i: Instruction, halves: _Halves) -> Run:
    """Two fp32 (or plain 32-bit) results in two registers."""
    function = _PAIRS.get(i.name)
    kind = "f" if function else "u"
    count = 3 if i.name == "v_pk_fma_f32" else 2
    parts = [[_word(m, i.operands[1 + n], kind, halves, n, second) for n in range(count)] for second in (0, 1)]
    found = register(i.operands[0])
    if found is None:
        raise Unknown(f"destination {i.operands[0]}")
    writes = [m.put(f"{found[0]}{found[1] + n}", kind) for n in (0, 1)]

    def run(g: Any) -> None:
        if function is None:  # op_sel[0] picks of the first source, op_sel[1] of the second
            out = [parts[0][0](g).copy(), parts[0][1](g).copy()]
        else:
            out = [function(*[part(g) for part in each]) for each in parts]
        for write, x in zip(writes, out, strict=True):
            write(g, x, None)

    return run


def _word(m: Machine, token: str, kind: str, halves: _Halves, n: int, second: int) -> Read:
    pick, negated = halves.pick[second][n], halves.negated[second][n]
    found = register(token)
    if found is None:
        constant = np.array([[number(token, "f")]], U32).view(F32 if kind == "f" else U32)
        read: Read = lambda g: constant  # noqa: E731
    else:
        bank, first, _ = found
        named = token in ("vcc", "exec")  # registers without a number
        read = m.source(token if named else f"{bank}{first + int(pick)}", kind)
    return (lambda g: -read(g)) if negated else read
