"""MFMA of one block of 16x16 or 32x32 (gfx90a to gfx950): fp16 and bf16 to fp32, int8 to int32.

Layout: CDNA3 ISA, "Matrix Arithmetic Instructions". Lane l holds row (A) or column (B) l % size and the elements
K = each * (l / size) .. + each - 1; register r of the result holds row 4 * (l / size) + r of a 16x16 block. Floating
sums are taken in fp64 and rounded once: the order of the hardware's own is not published.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import F32, F64, I32, U32, Array, Unknown
from .machine import Machine
from .operands import number
from .text import Instruction

_NAME = re.compile(r"v_mfma_(f32|i32)_(\d+)x(\d+)x(\d+)_?(bf16|f16|i8)(_1k)?$")
_SHAPES = {("f32", 16, 16), ("f32", 32, 8), ("f32", 16, 32), ("f32", 32, 16), ("i32", 16, 32), ("i32", 32, 16)}


def build_matrix(m: Machine, i: Instruction) -> Callable[[Any], None]:
    """D = A @ B + C for a whole wave."""
    found = _NAME.match(i.name)
    if not found or i.mods or found[2] != found[3] or (found[1], int(found[2]), int(found[4])) not in _SHAPES:
        raise Unknown(f"instruction {i.text}")
    result, size, depth, kind = found[1], int(found[2]), int(found[4]), found[5]
    dtype = F32 if result == "f32" else I32
    d, a, b = (m.bank(token) for token in i.operands[:3])
    constant = number(i.operands[3], "f" if result == "f32" else "i")
    c = None if constant is not None else m.bank(i.operands[3])
    added = None if constant is None else np.array([constant], U32).view(dtype)
    rows, columns = _places(size)

    def run(g: Any) -> None:
        left, right = (_operand(m, bank, at, g, size, depth, kind) for bank, at in (a, b))
        product = np.matmul(left, right.transpose(0, 2, 1))
        for r in range(len(rows)):
            old = added if c is None else np.ascontiguousarray(c[0][c[1] + r, g]).view(dtype)
            out = product[:, rows[r], columns] + old.astype(F64)
            d[0][d[1] + r, g] = _narrowed(out, dtype)

    return run


def _places(size: int) -> tuple[Array, Array]:
    """Rows [registers, lanes] and columns [lanes] of the result."""
    lane = np.arange(64)
    quad = 4 * (lane // size)
    if size == 16:
        return np.stack([quad + r for r in range(4)]), lane % size
    return np.stack([8 * (r // 4) + quad + r % 4 for r in range(16)]), lane % size


def _operand(m: Machine, bank: Array, at: int, g: Any, size: int, depth: int, kind: str) -> Array:
    """[waves, size, depth] of A or B."""
    groups = 64 // size
    each = depth // groups  # elements of K in a lane
    words = each // (4 if kind == "i8" else 2)
    raw = np.ascontiguousarray(np.stack([bank[at + k, g] for k in range(words)], axis=-1))
    if kind == "i8":
        values = raw.view(np.int8).astype(F64)  # exact: sums stay far below 2**53
    elif kind == "f16":
        values = raw.view(np.float16).astype(F64)
    else:
        values = (raw.view(np.uint16).astype(U32) << U32(16)).view(F32).astype(F64)
    out = np.empty((m.n(g), size, depth), F64)
    for q in range(groups):
        out[:, :, q * each : (q + 1) * each] = values[:, q * size : (q + 1) * size]
    return out


def _narrowed(x: Array, dtype: Any) -> Array:
    """fp64 to 32 bits: fp32 rounded once, or an integer that wraps."""
    return x.astype(F32).view(U32) if dtype is F32 else (x.astype(np.int64) & 0xFFFFFFFF).astype(U32)
