"""Moves between lanes: DPP and SDWA operands, read and write of single lanes, permutations, swizzles."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from . import arithmetic
from .arithmetic import I32, U32, U64, Array, Unknown
from .machine import Machine
from .text import Instruction

Run = Callable[[Any], None]
View = Callable[[Any, Array, bool], Array]


def lane_view(m: Machine, i: Instruction) -> View | None:
    """What DPP or SDWA does to the first source."""
    mods = i.mods
    if i.full.endswith("_sdwa"):
        return None
    control = _dpp(m, mods)
    if control is None:
        return None
    source, inside = control

    def view(g: Any, x: Array, sext: bool) -> Array:
        x = np.broadcast_to(x, (m.n(g), m.lanes))
        valid = inside & (m.E[g][:, source] | ("fi" in mods))
        return np.where(valid, x[:, source], x.dtype.type(0))

    return view


def _dpp(m: Machine, mods: dict[str, str]) -> tuple[Array, Array] | None:
    """(source lane, is it inside the row) of every lane."""
    lane = np.arange(m.lanes)
    row, at = lane // 16 * 16, lane % 16
    yes = np.ones(m.lanes, bool)
    if "quad_perm" in mods:
        p = np.array([int(c) for c in mods["quad_perm"].strip("[]").split(",")])
        return lane // 4 * 4 + p[lane % 4], yes
    if "row_shl" in mods:
        n = int(mods["row_shl"])
        return np.minimum(lane + n, m.lanes - 1), at + n < 16
    if "row_shr" in mods:
        n = int(mods["row_shr"])
        return np.maximum(lane - n, 0), at - n >= 0
    if "row_ror" in mods:
        return row + (at - int(mods["row_ror"])) % 16, yes
    if "row_mirror" in mods:
        return row + 15 - at, yes
    if "row_half_mirror" in mods:
        return lane // 8 * 8 + 7 - lane % 8, yes
    if "row_bcast" in mods:
        n = int(mods["row_bcast"])
        if n == 15:
            return np.maximum(row - 1, 0), row > 0
        return np.maximum(lane // 32 * 32 - 1, 0), lane >= 32
    if "row_share" in mods or "row_newbcast" in mods:
        return row + int(mods.get("row_share") or mods["row_newbcast"]), yes
    if "row_xmask" in mods:
        return row + (at ^ int(mods["row_xmask"])), yes
    if "wave_shr" in mods:
        return np.maximum(lane - 1, 0), lane > 0
    if "wave_shl" in mods:
        return np.minimum(lane + 1, m.lanes - 1), lane + 1 < m.lanes
    if "wave_ror" in mods:
        return (lane - 1) % m.lanes, yes
    if "dpp8" in mods:
        p = np.array([int(c) for c in mods["dpp8"].strip("[]").split(",")])
        return lane // 8 * 8 + p[lane % 8], yes
    return None


def dpp_enable(m: Machine, i: Instruction) -> Callable[[Any], Array] | None:
    control = _dpp(m, i.mods)
    if control is None:
        return None
    source, inside = control
    rows = int(i.mods.get("row_mask", "0xf"), 0)
    banks = int(i.mods.get("bank_mask", "0xf"), 0)
    lane = np.arange(m.lanes)
    allowed = ((rows >> (lane // 16 % 4)) & 1).astype(bool) & ((banks >> (lane // 4 % 4)) & 1).astype(bool)
    bound = "bound_ctrl" in i.mods

    def enable(g: Any) -> Array:
        on = m.E[g] & allowed
        if not bound:
            on = on & inside & (m.E[g][:, source] | ("fi" in i.mods))
        return on

    return enable


def sdwa_select(which: str) -> tuple[int, int]:
    if which.startswith("BYTE_"):
        return 8 * int(which[5]), 8
    if which.startswith("WORD_"):
        return 16 * int(which[5]), 16
    return 0, 32


def sdwa_view(which: str) -> View:
    shift, width = sdwa_select(which)

    def view(g: Any, x: Array, sext: bool) -> Array:
        if width == 32:
            return x
        y = (x >> U32(shift)) & U32((1 << width) - 1)
        if sext:
            y = (y << U32(32 - width)).view(I32) >> I32(32 - width)
            y = y.view(U32)
        return y

    return view


def read_first(m: Machine, i: Instruction) -> Run:
    read = m.source(i.operands[1], "u")
    at = m.scalar(i.operands[0])

    def run(g: Any) -> None:
        x = np.broadcast_to(read(g), (m.n(g), m.lanes))
        e = m.E[g]
        lane = np.where(e.any(axis=1), e.argmax(axis=1), 0)
        m.S[at, g] = x[np.arange(len(x)), lane]

    return run


def read_lane(m: Machine, i: Instruction) -> Run:
    read, lane = m.source(i.operands[1], "u"), m.raw(i.operands[2], "u")
    at = m.scalar(i.operands[0])

    def run(g: Any) -> None:
        x = np.broadcast_to(read(g), (m.n(g), m.lanes))
        n = np.broadcast_to(lane(g)[:, 0], (len(x),)) % m.lanes
        m.S[at, g] = x[np.arange(len(x)), n]

    return run


def write_lane(m: Machine, i: Instruction) -> Run:
    value, lane = m.raw(i.operands[1], "u"), m.raw(i.operands[2], "u")
    bank, at = m.bank(i.operands[0])

    def run(g: Any) -> None:
        n = np.broadcast_to(lane(g)[:, 0], (m.n(g),)) % m.lanes
        now = bank[at, g].copy()
        now[np.arange(len(now)), n] = np.broadcast_to(value(g)[:, 0], (len(now),))
        bank[at, g] = now

    return run


def permute_16(m: Machine, i: Instruction) -> Run:
    read, low, high = m.source(i.operands[1], "u"), m.raw(i.operands[2], "u"), m.raw(i.operands[3], "u")
    write = m.put(i.operands[0], "u")
    cross = i.name.startswith("v_permlanex16")
    bound = re.findall(r"[01]", i.mods.get("op_sel", "[0,0]"))  # op_sel: [fi, bound_ctrl]
    fi, bc = bound[0] == "1", bound[1] == "1"
    lane = np.arange(m.lanes)

    def run(g: Any) -> None:
        x = np.broadcast_to(read(g), (m.n(g), m.lanes))
        lo, hi = low(g).astype(U64), high(g).astype(U64)
        table = lo | (hi << U64(32))
        pick = ((table >> (U64(4) * (lane % 16).astype(U64))) & U64(15)).astype(np.int64)
        row = lane // 16
        row = row ^ 1 if cross else row
        source = np.broadcast_to(row * 16 + pick, x.shape)
        valid = np.take_along_axis(np.broadcast_to(m.E[g], x.shape), source, axis=1) | fi
        y = np.where(valid, np.take_along_axis(x, source, axis=1), U32(0))
        write(g, y, m.E[g] & (valid | bc))

    return run


def swap_rows(m: Machine, i: Instruction) -> Run:
    (a_bank, a), (b_bank, b) = (m.bank(token) for token in i.operands[:2])
    width = 32 if "32" in i.name.split("_")[1] else 16

    def run(g: Any) -> None:
        x, y = a_bank[a, g].copy(), b_bank[b, g].copy()
        if not m.E[g].all():
            raise Unknown("permlane swap with inactive lanes")
        nx, ny = x.copy(), y.copy()
        for at in range(0, m.lanes, 2 * width):
            nx[:, at + width : at + 2 * width] = y[:, at : at + width]
            ny[:, at : at + width] = x[:, at + width : at + 2 * width]
        a_bank[a, g], b_bank[b, g] = nx, ny

    return run


def count_below(m: Machine, i: Instruction) -> Run:
    mask, add = m.source(i.operands[1], "u"), m.source(i.operands[2], "u")
    write = m.put(i.operands[0], "u")
    lane = np.arange(m.lanes)
    if "_lo" in i.name:
        below = np.where(lane < 32, (1 << np.minimum(lane, 31).astype(np.int64)) - 1, 0xFFFFFFFF).astype(U32)
    else:
        below = np.where(lane < 32, 0, (1 << np.maximum(lane - 32, 0).astype(np.int64)) - 1).astype(U32)
    return lambda g: write(g, arithmetic.popcount(mask(g) & below) + add(g), None)


def swap(m: Machine, i: Instruction) -> Run:
    a, b = m.source(i.operands[0], "u"), m.source(i.operands[1], "u")
    wa, wb = m.put(i.operands[0], "u"), m.put(i.operands[1], "u")

    def run(g: Any) -> None:
        x, y = a(g).copy(), b(g).copy()
        wa(g, y, None)
        wb(g, x, None)

    return run


def swizzle(m: Machine, i: Instruction) -> Run:
    read, write = m.raw(i.operands[1], "u"), m.put(i.operands[0], "u")
    token = i.mods.get("offset", "0")
    lane = np.arange(m.lanes)
    found = re.match(r"swizzle\((\w+),(.*)\)", token)
    if found:
        mode, args = found.group(1), [a.strip() for a in found.group(2).split(",")]
        if mode == "QUAD_PERM":
            p = np.array([int(a) for a in args])
            source = lane // 4 * 4 + p[lane % 4]
        elif mode == "SWAP":
            source = lane ^ int(args[0])
        elif mode == "REVERSE":
            n = int(args[0])
            source = lane // n * n + n - 1 - lane % n
        elif mode == "BROADCAST":
            n, k = int(args[0]), int(args[1])
            source = lane // n * n + k
        elif mode == "BITMASK_PERM":
            text = args[0].strip('"')
            source = lane // 32 * 32
            for bit in range(5):
                c = text[4 - bit]
                b = lane >> bit & 1
                source = source | ({"0": 0 * b, "1": 0 * b + 1, "p": b, "i": 1 - b}[c] << bit)
        else:
            raise Unknown(i.text)
    else:
        value = int(token, 0)
        if value >> 15 & 1:
            p = np.array([value >> (2 * k) & 3 for k in range(4)])
            source = lane // 4 * 4 + p[lane % 4]
        else:
            source = lane // 32 * 32 + (((lane % 32 & (value & 31)) | (value >> 5 & 31)) ^ (value >> 10 & 31))

    def run(g: Any) -> None:
        x = np.broadcast_to(read(g), (m.n(g), m.lanes))
        e = m.E[g]
        write(g, np.where(e[:, source], x[:, source], U32(0)), None)

    return run
