"""ds_*: loads and stores of local memory, and the moves between lanes that go through its crossbar."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import U32, Array, Unknown
from .lanes import swizzle
from .machine import Machine
from .text import Instruction
from .vector_memory import access

Run = Callable[[Any], None]
_TWO = re.compile(r"ds_(read|load|write|store)(2st64|2|_2addr_stride64|_2addr|)_(.*)$")


def load_local(m: Machine, g: Any, address: Array, touch: Array, size: int, where: str) -> Array:
    """[waves, lanes] addresses, of which ``touch`` are read -> [touched, size] bytes."""
    wave, _ = m.touched(g, touch)
    return m.lds.load(wave, m.group[wave], address[touch], size, where)


def store_local(m: Machine, g: Any, address: Array, touch: Array, raw: Array, where: str) -> None:
    """[waves, lanes] addresses, of which ``touch`` are written with [touched, size] bytes."""
    wave, _ = m.touched(g, touch)
    m.lds.store(wave, m.group[wave], address[touch], raw, where)


def build_ds(m: Machine, i: Instruction) -> Run:
    """One ds_ instruction."""
    if i.name == "ds_swizzle_b32":
        return swizzle(m, i)
    if i.name in ("ds_bpermute_b32", "ds_permute_b32"):
        return _permute(m, i)
    if i.name == "ds_nop":
        return lambda g: None
    match = _TWO.match(i.name)
    if not match:
        raise Unknown(f"instruction {i.full}")
    loading, two, what = match.group(1) in ("read", "load"), match.group(2), match.group(3)
    if two:
        unit = 8 if what.endswith("b64") else 4
        scale = unit * (64 if "64" in two else 1)
        offsets = [int(i.mods.get(f"offset{k}", "0"), 0) * scale for k in (0, 1)]
        return (_load_two if loading else _store_two)(m, i, unit, offsets)
    address = m.raw(i.operands[1 if loading else 0], "u")
    offset = int(i.mods.get("offset", "0"), 0)
    everyone = np.ones((1, m.lanes), bool)

    def addresses(g: Any) -> tuple[Array, Array]:
        return np.broadcast_to(address(g), (m.n(g), m.lanes)).astype(np.int64) + offset, everyone

    kind = what.replace("u16_d16", "short_d16").replace("u8_d16", "ubyte_d16")
    data = i.operands[0 if loading else 1]

    def load(g: Any, at: Array, touch: Array, size: int, where: str) -> Array:
        return load_local(m, g, at, touch, size, where)

    def store(g: Any, at: Array, touch: Array, raw: Array, where: str) -> None:
        store_local(m, g, at, touch, raw, where)

    return access(m, f"{'load' if loading else 'store'}_{kind}", i.where, addresses, data, load, store)


def _permute(m: Machine, i: Instruction) -> Run:
    address, data, write = m.raw(i.operands[1], "u"), m.raw(i.operands[2], "u"), m.put(i.operands[0], "u")
    offset = int(i.mods.get("offset", "0"), 0)
    backward = i.name == "ds_bpermute_b32"

    def run(g: Any) -> None:
        a = np.broadcast_to(address(g), (m.n(g), m.lanes))
        x, on = np.broadcast_to(data(g), a.shape), m.E[g]
        lane = (((a + U32(offset)) >> U32(2)) % U32(m.lanes)).astype(np.int64)
        if backward:
            y = np.take_along_axis(np.where(on, x, U32(0)), lane, axis=1)
        else:
            y = np.zeros_like(x)
            for wave, n in np.argwhere(on):
                y[wave, lane[wave, n]] = x[wave, n]
        write(g, y, None)

    return run


def _load_two(m: Machine, i: Instruction, unit: int, offsets: list[int]) -> Run:
    address, words = m.raw(i.operands[1], "u"), unit // 4
    bank, at = m.bank(i.operands[0])

    def run(g: Any) -> None:
        a, on = np.broadcast_to(address(g), (m.n(g), m.lanes)).astype(np.int64), m.E[g]
        if not on.any():
            return
        out = []
        for offset in offsets:
            raw = np.zeros((*on.shape, unit), np.uint8)
            raw[on] = load_local(m, g, a + offset, on, unit, i.where)
            out.append(raw.view(U32))
        for k, found in enumerate(out):
            for j in range(words):
                m.put_register(bank, at + k * words + j, g, found[:, :, j], on)

    return run


def _store_two(m: Machine, i: Instruction, unit: int, offsets: list[int]) -> Run:
    address = m.raw(i.operands[0], "u")
    sources = [m.bank(token) for token in i.operands[1:3]]

    def run(g: Any) -> None:
        a, on = np.broadcast_to(address(g), (m.n(g), m.lanes)).astype(np.int64), m.E[g]
        if not on.any():
            return
        for (bank, at), offset in zip(sources, offsets, strict=True):
            words = np.stack([bank[at + k, g] for k in range(unit // 4)], axis=-1)
            store_local(m, g, a + offset, on, np.ascontiguousarray(words).view(np.uint8)[on], i.where)

    return run
