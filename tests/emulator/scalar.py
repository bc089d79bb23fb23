"""Scalar instructions: branches, comparisons, lane masks, and those of ``scalar_table``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import F32, I32, I64, U32, U64, Array, Unknown
from .machine import Machine
from .operands import EXEC, number
from .scalar_table import SALU, constant16
from .text import Instruction
from .vector_table import COMPARE

Run = Callable[[Any], None]
Read = Callable[[Any], Array]
Write = Callable[[Any, Array], None]
_INTEGER = re.compile(r"^-?(0x)?[0-9a-fA-F]+$")
_TYPES = {"u": U32, "i": I32, "U": U64, "I": I64, "f": F32}


def source(m: Machine, token: str, wide: bool) -> Read:
    """[waves] values of a scalar operand, 32 bits or 64."""
    value = number(token, "u")
    if value is not None:
        if wide:
            value = number(token, "U" if _INTEGER.match(token) else "d")
        constant = np.array([value], U64 if wide else U32)
        return lambda g: np.broadcast_to(constant, (m.n(g),))
    read = m.raw(token, "U" if wide else "u")
    return lambda g: np.broadcast_to(read(g)[:, 0], (m.n(g),))


def destination(m: Machine, token: str, wide: bool) -> Write:
    """Write [waves] values to a scalar register, 32 bits or 64."""
    if token == "null":
        return lambda g, x: None
    at = m.scalar(token)

    def write(g: Any, x: Array) -> None:
        if wide:
            x = x.astype(U64) if x.dtype != I64 else x.view(U64)
            m.S[at, g] = (x & U64(0xFFFFFFFF)).astype(U32)
            m.S[at + 1, g] = (x >> U64(32)).astype(U32)
        else:
            m.S[at, g] = x.view(U32) if x.dtype in (I32, F32) else x.astype(U32)
        if at in (EXEC, EXEC + 1):
            m.load_exec(g)

    return write


def build_scalar(m: Machine, i: Instruction) -> Run:
    """One s_ instruction that is no load, no barrier and no wait."""
    name = i.name
    for prefix, build in _FAMILIES.items():
        if name.startswith(prefix):
            return build(m, i)
    if "saveexec" in name:
        return _save_exec(m, i)
    if name in _CARRY:
        return _carry(m, i)
    if name not in SALU:
        raise Unknown(f"instruction {i.full}")
    kind, kinds, function, flag = SALU[name]
    reads = []
    for n, operand in enumerate(kinds):  # D: the destination's old value, fp32
        token = i.operands[0 if operand == "D" else 1 + n]
        reads.append((source(m, token, operand in "UI"), _TYPES["f" if operand == "D" else operand]))
    write = destination(m, i.operands[0], kind in "UI")

    def run(g: Any) -> None:
        args = [np.ascontiguousarray(read(g)).view(dtype) for read, dtype in reads]
        result = function(*args)
        if flag is not None:
            m.scc[g] = result != 0 if flag == "nz" else flag(*args)
        write(g, result)

    return run


def _branch(m: Machine, i: Instruction) -> Run:
    target = i.target
    return lambda g: m.pc.__setitem__(g, target)


def _branch_if(m: Machine, i: Instruction) -> Run:
    target, vcc = i.target, m.mask_of("vcc")
    test = {
        "scc0": lambda g: ~m.scc[g],
        "scc1": lambda g: m.scc[g],
        "execz": lambda g: ~m.E[g].any(axis=1),
        "execnz": lambda g: m.E[g].any(axis=1),
        "vccz": lambda g: ~vcc(g).any(axis=1),
        "vccnz": lambda g: vcc(g).any(axis=1),
    }[i.name.removeprefix("s_cbranch_")]

    def run(g: Any) -> None:
        index = np.arange(m.count) if isinstance(g, slice) else g
        m.pc[index[test(g)]] = target

    return run


def _no_register(m: Machine, i: Instruction) -> Run:
    """S_GETREG_B32: the hardware's registers are not modelled and read as 0."""
    write = destination(m, i.operands[0].split(",")[0].split(" ")[0], False)
    return lambda g: write(g, np.zeros(m.n(g), U32))


def _move_constant(m: Machine, i: Instruction) -> Run:
    value = np.array([int(i.operands[1], 0) & 0xFFFF], np.uint16).view(np.int16).astype(I32)
    write = destination(m, i.operands[0], False)
    return lambda g: write(g, np.broadcast_to(value, (m.n(g),)).copy())


def _with_constant(m: Machine, i: Instruction) -> Run:
    value = np.int64(np.uint16(int(i.operands[1], 0) & 0xFFFF).view(np.int16))
    read, write = source(m, i.operands[0], False), destination(m, i.operands[0], False)
    multiply = i.name == "s_mulk_i32"

    def run(g: Any) -> None:
        x = read(g).view(I32).astype(np.int64)
        result = x * value if multiply else x + value
        if not multiply:
            m.scc[g] = (result > 2**31 - 1) | (result < -(2**31))
        write(g, (result & 0xFFFFFFFF).astype(U32))

    return run


def _compare(m: Machine, i: Instruction) -> Run:
    relation, kind = i.name.split("_")[2:4]
    dtype = {"i32": I32, "u32": U32, "u64": U64, "f32": F32}[kind]
    right = str(constant16(i.operands[1], kind)) if i.name.startswith("s_cmpk") else i.operands[1]
    a, b = source(m, i.operands[0], kind == "u64"), source(m, right, kind == "u64")
    test = COMPARE["ne" if relation == "lg" and dtype is not F32 else relation]

    def run(g: Any) -> None:
        m.scc[g] = test(np.ascontiguousarray(a(g)).view(dtype), np.ascontiguousarray(b(g)).view(dtype))

    return run


def _compare_bit(m: Machine, i: Instruction) -> Run:
    wide, wanted = "64" in i.name, i.name[8] == "1"
    a, b = source(m, i.operands[0], wide), source(m, i.operands[1], False)

    def run(g: Any) -> None:
        bit = (a(g).astype(U64) >> (b(g) & U32(63 if wide else 31)).astype(U64)) & U64(1)
        m.scc[g] = (bit == 1) == wanted

    return run


_SAVE: dict[str, Callable[[Array, Array], Array]] = {
    "and": lambda x, e: x & e,
    "or": lambda x, e: x | e,
    "xor": lambda x, e: x ^ e,
    "andn2": lambda x, e: x & ~e,
    "orn2": lambda x, e: x | ~e,
    "andn1": lambda x, e: ~x & e,
    "and_not1": lambda x, e: x & ~e,  # the names of GFX11 and newer
    "and_not0": lambda x, e: ~x & e,
    "or_not1": lambda x, e: x | ~e,
}


def _save_exec(m: Machine, i: Instruction) -> Run:
    wide = i.name.endswith("b64")
    mask = "exec" if wide else "exec_lo"
    given, write = source(m, i.operands[1], wide), destination(m, i.operands[0], wide)
    now, put = source(m, mask, wide), destination(m, mask, wide)
    function = _SAVE[i.name[2:].split("_saveexec")[0]]

    def run(g: Any) -> None:
        x, before = given(g).copy(), now(g).copy()
        result = function(x, before)
        write(g, before)
        put(g, result)
        m.scc[g] = result != 0

    return run


def _set_bit(m: Machine, i: Instruction) -> Run:
    wide, on = i.name.endswith("64"), i.name[8] == "1"
    which, old = source(m, i.operands[1], False), source(m, i.operands[0], wide)
    write = destination(m, i.operands[0], wide)

    def run(g: Any) -> None:
        bit = U64(1) << (which(g) & U32(63 if wide else 31)).astype(U64)
        x = old(g).astype(U64)
        write(g, x | bit if on else x & ~bit)

    return run


def _select(m: Machine, i: Instruction) -> Run:
    """S_CSELECT, and S_CMOV, which keeps the destination."""
    wide = i.name.endswith("64")
    a = source(m, i.operands[1], wide)
    b = source(m, i.operands[2 if i.name.startswith("s_cselect") else 0], wide)
    write = destination(m, i.operands[0], wide)
    return lambda g: write(g, np.where(m.scc[g], a(g), b(g)))


_CARRY = ("s_addc_u32", "s_add_co_ci_u32", "s_subb_u32", "s_sub_co_ci_u32")


def _carry(m: Machine, i: Instruction) -> Run:
    a, b = (source(m, token, False) for token in i.operands[1:3])
    write, subtract = destination(m, i.operands[0], False), "sub" in i.name

    def run(g: Any) -> None:
        x, y, c = a(g).astype(I64), b(g).astype(I64), m.scc[g].astype(I64)
        result = x - y - c if subtract else x + y + c
        m.scc[g] = (result < 0) | (result > 0xFFFFFFFF)
        write(g, (result & 0xFFFFFFFF).astype(U32))

    return run


_FAMILIES: dict[str, Callable[[Machine, Instruction], Run]] = {
    "s_branch": _branch,
    "s_cbranch_": _branch_if,
    "s_getreg_b32": _no_register,
    "s_movk_i32": _move_constant,
    "s_addk_": _with_constant,
    "s_mulk_": _with_constant,
    "s_cmp_": _compare,
    "s_cmpk_": _compare,
    "s_bitcmp": _compare_bit,
    "s_bitset": _set_bit,
    "s_cselect_": _select,
    "s_cmov_": _select,
}
