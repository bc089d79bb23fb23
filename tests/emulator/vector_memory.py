"""Loads, stores and atomics of vectors: buffer_*, global_*, flat_* and scratch_*.

A lane of a buffer access whose bytes do not end within the resource's ``num_records`` loads zero and stores nothing;
soffset counts in that check (CDNA3 ISA, "Buffer addressing", raw buffers: offset >= num_records - sgpr_offset).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import F32, I32, U32, U64, Array, Unknown, nearest_bf16
from .machine import Machine
from .memory import Fault
from .operands import M0
from .text import Instruction

Run = Callable[[Any], None]
Addresses = Callable[[Any], tuple[Array, Array]]
Load = Callable[[Any, Array, Array, int, str], Array]
Store = Callable[[Any, Array, Array, Array, str], None]

_LOADS = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "b32": 4, "b64": 8, "b96": 12, "b128": 16}
_SMALL = {
    "ubyte": (1, False),
    "u8": (1, False),
    "sbyte": (1, True),
    "i8": (1, True),
    "ushort": (2, False),
    "u16": (2, False),
    "sshort": (2, True),
    "i16": (2, True),
}


def _format(kind: str) -> tuple[int, bool, bool | None]:
    """Bytes, sign extension, and which half of the register alone is meant (None: all of it)."""
    if "d16" in kind:
        one = "byte" in kind or kind.endswith(("u8", "i8"))
        return (1 if one else 2), one and ("sbyte" in kind or kind.endswith("i8")), "_hi" in kind
    if kind in _SMALL:
        return *_SMALL[kind], None
    return _LOADS[kind], False, None


def access(m: Machine, what: str, where: str, addresses: Addresses, data: str, load: Load, store: Store) -> Run:
    """``load_KIND`` or ``store_KIND`` of the vector registers ``data``.

    ``addresses`` gives [waves, lanes] int64 and the lanes that touch memory; the others load zero.
    """
    bank, at = m.bank(data)
    action, _, kind = what.partition("_")
    if action == "load":
        return _loading(m, kind, where, addresses, (bank, at), load)
    if action != "store":
        raise Unknown(what)
    high, size = "_hi" in kind, _stored(kind)

    def run(g: Any) -> None:
        address, touch = addresses(g)
        touch = touch & m.E[g]
        if not touch.any():
            return
        words = np.stack([bank[at + k, g] for k in range(max(size // 4, 1))], axis=-1)
        if high:
            words = words >> U32(16)
        store(g, address, touch, np.ascontiguousarray(words).view(np.uint8)[touch][:, :size], where)

    return run


def _loading(m: Machine, kind: str, where: str, addresses: Addresses, target: tuple[Array, int], load: Load) -> Run:
    bank, at = target
    size, signed, high = _format(kind)

    def run(g: Any) -> None:
        address, touch = addresses(g)
        on = m.E[g]
        touch = touch & on
        raw = np.zeros((*on.shape, max(size, 4)), np.uint8)
        if touch.any():
            raw[touch, :size] = load(g, address, touch, size, where)
        words = raw.view(U32)
        if signed:
            words = ((words << U32(32 - 8 * size)).view(I32) >> I32(32 - 8 * size)).view(U32)
        for k in range(words.shape[2]):
            value = words[:, :, k]
            if high is not None:
                old = bank[at, g]
                kept, moved = (U32(0xFFFF), value << U32(16)) if high else (U32(0xFFFF0000), value & U32(0xFFFF))
                value = (old & kept) | moved
            m.put_register(bank, at + k, g, value, on)

    return run


def _to_memory(m: Machine) -> tuple[Load, Store]:
    def load(g: Any, addr: Array, touch: Array, size: int, where: str) -> Array:
        return m.memory.load(addr[touch], size, where)

    def store(g: Any, addr: Array, touch: Array, raw: Array, where: str) -> None:
        m.memory.store(addr[touch], raw, where)

    return load, store


def _resource(m: Machine, token: str, vaddr: str | None, soffset: str, mods: dict[str, str], size: int) -> Addresses:
    """Addresses through a buffer resource of four scalar registers.

    Without an index the bytes are checked against num_records; with one, the index (stride > 0, no swizzle).
    """
    indexed, offset = "idxen" in mods, int(mods.get("offset", "0"), 0)
    if indexed and "offen" in mods:
        raise Unknown("a buffer with index and offset")
    base, shift = m.scalar(token), m.raw(soffset, "u")
    lanes = m.raw(vaddr, "u") if vaddr else None

    def addresses(g: Any) -> tuple[Array, Array]:
        n = m.n(g)
        words = [m.S[base + k, g] for k in range(4)]
        if (words[1] >> U32(31)).any():
            raise Unknown("a swizzled buffer")
        start = words[0].astype(U64) | ((words[1] & U32(0xFFFF)).astype(U64) << U64(32))
        stride = ((words[1] >> U32(16)) & U32(0x3FFF)).astype(np.int64)[:, None]
        records = words[2].astype(np.int64)[:, None]
        given = np.broadcast_to(lanes(g).astype(np.int64) if lanes else np.zeros((n, 1), np.int64), (n, m.lanes))
        moved = np.broadcast_to(shift(g), (n, 1)).astype(np.int64) + offset
        at = given * stride + moved if indexed else given + moved
        inside = np.where(stride > 0, given < records, at + size <= records) if indexed else at + size <= records
        m.memory.stats["masked"] += int((~inside & m.E[g]).sum())
        return start[:, None] + at.view(U64), inside

    return addresses


def build_buffer(m: Machine, i: Instruction) -> Run:
    """buffer_*: data, vaddr (or off), resource, soffset."""
    if i.name.startswith("buffer_atomic"):
        return _atomic_buffer(m, i)
    o, what = list(i.operands), i.name.split("_", 1)[1]
    data = None if "lds" in i.mods else o.pop(0)
    vaddr = o.pop(0) if "offen" in i.mods or "idxen" in i.mods or o[0] == "off" else None
    size = _format(what.split("_", 1)[1])[0] if what.startswith("load") else _stored(what.split("_", 1)[1])
    addresses = _resource(m, o[0], None if vaddr == "off" else vaddr, o[1], i.mods, size)
    if data is None:
        return _to_local(m, i, addresses, size)
    return access(m, what, i.where, addresses, data, *_to_memory(m))


def _stored(kind: str) -> int:
    return _LOADS.get(kind) or (1 if "byte" in kind or kind.endswith("b8") else 2)


def _to_local(m: Machine, i: Instruction, addresses: Addresses, size: int) -> Run:
    """buffer_load .. lds: the words of lane n land at M0 + offset + n * size."""
    offset = int(i.mods.get("offset", "0"), 0)
    lane = np.arange(m.lanes)

    def run(g: Any) -> None:
        address, inside = addresses(g)
        on = m.E[g]
        if not on.any():
            return
        raw = np.zeros((*on.shape, size), np.uint8)
        touch = inside & on
        if touch.any():
            raw[touch] = m.memory.load(address[touch], size, i.where)
        target = (m.S[M0, g] & U32(0xFFFF)).astype(np.int64)[:, None] + offset + lane * size
        wave, _ = m.touched(g, on)
        m.lds.store(wave, m.group[wave], np.broadcast_to(target, on.shape)[on], raw[on], i.where)

    return run


def _atomic_buffer(m: Machine, i: Instruction) -> Run:
    o = list(i.operands)
    what = i.name.removeprefix("buffer_atomic_")
    data = o.pop(0)
    vaddr = o.pop(0) if "offen" in i.mods or "idxen" in i.mods or o[0] == "off" else None
    addresses = _resource(m, o[0], None if vaddr == "off" else vaddr, o[1], i.mods, 4)
    return _add_to_memory(m, i, what, addresses, data)


def build_global(m: Machine, i: Instruction) -> Run:
    """global_* and flat_*: addresses of 64 bits, or of a scalar base and 32 bits."""
    prefix, _, what = i.name.partition("_")
    o = i.operands
    loading = what.startswith("load")
    data, at = (o[0], o[1]) if loading else (o[1], o[0])
    base = o[2] if len(o) > 2 and prefix == "global" and o[2] not in ("off", "null") else None
    offset = np.array(int(i.mods.get("offset", "0"), 0), np.int64).view(U64)
    low, high = m.raw(at, "u" if base else "U"), m.raw(base, "U") if base else None
    everyone = np.ones((1, m.lanes), bool)

    def addresses(g: Any) -> tuple[Array, Array]:
        address = low(g).astype(U64) + offset + (high(g) if high else U64(0))
        return np.broadcast_to(address, (m.n(g), m.lanes)), everyone

    if what.startswith("atomic"):
        return _add_to_memory(m, i, what.removeprefix("atomic_"), addresses, data)
    return access(m, what, i.where, addresses, data, *_to_memory(m))


def _add_to_memory(m: Machine, i: Instruction, what: str, addresses: Addresses, data: str) -> Run:
    """Atomic additions without a result, lane after lane: fp32, 32-bit integers, pairs of fp16 or bf16."""
    if "glc" in i.mods or "sc0" in i.mods or what not in _ADD:
        raise Unknown(f"instruction {i.full}")
    add, value = _ADD[what], m.raw(data, "u")

    def run(g: Any) -> None:
        address, inside = addresses(g)
        touch = inside & m.E[g]
        v = np.broadcast_to(value(g), touch.shape)
        for wave, lane in np.argwhere(touch):
            at = address[wave : wave + 1, lane]
            old = np.ascontiguousarray(m.memory.load(at, 4, i.where)).view(U32)[0]
            m.memory.store(at, add(old, v[wave, lane : lane + 1]).view(np.uint8)[None], i.where)

    return run


def _add_bf16(a: Array, b: Array) -> Array:
    low, high = (
        ((a << s) & U32(0xFFFF0000)).view(F32) + ((b << s) & U32(0xFFFF0000)).view(F32) for s in (U32(16), U32(0))
    )
    return nearest_bf16(low) | (nearest_bf16(high) << U32(16))


_ADD: dict[str, Callable[[Array, Array], Array]] = {
    "add_f32": lambda a, b: a.view(F32) + b.view(F32),
    "add_u32": lambda a, b: a + b,
    "add": lambda a, b: a + b,
    "pk_add_f16": lambda a, b: (a.view(np.float16) + b.view(np.float16)).view(U32),
    "pk_add_bf16": _add_bf16,
}


def build_scratch(m: Machine, i: Instruction) -> Run:
    """scratch_*: memory of each lane's own."""
    o, what = i.operands, i.name.removeprefix("scratch_")
    data, at = (o[0], o[1]) if what.startswith("load") else (o[1], o[0])
    base = o[2] if len(o) > 2 else "off"
    offset = int(i.mods.get("offset", "0"), 0)
    terms = [m.raw(token, "u") for token in (at, base) if token not in ("off", "null")]

    def addresses(g: Any) -> tuple[Array, Array]:
        a = np.zeros((m.n(g), m.lanes), np.int64) + offset
        for term in terms:
            a = a + term(g).astype(np.int64)
        return a, np.ones((1, m.lanes), bool)

    def pick(g: Any, address: Array, touch: Array, size: int, where: str) -> tuple[Any, ...]:
        wave, lane = m.touched(g, touch)
        a = address[touch]
        if (a < 0).any() or (a + size > m.scratch_size).any():
            raise Fault(f"{where}: scratch access outside {m.scratch_size} bytes")
        return wave[:, None], lane[:, None], a[:, None] + np.arange(size)

    def load(g: Any, address: Array, touch: Array, size: int, where: str) -> Array:
        return m.scratch[pick(g, address, touch, size, where)]

    def store(g: Any, address: Array, touch: Array, raw: Array, where: str) -> None:
        m.scratch[pick(g, address, touch, raw.shape[1], where)] = raw

    return access(m, what, i.where, addresses, data, load, store)
