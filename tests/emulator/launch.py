"""Run a kernel of a code object on tensors: its arguments by the metadata, its memory checked."""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import instructions, objdump, text
from .codeobject import CodeObject, Kernel
from .machine import Machine, Size
from .memory import BASE, Memory
from .text import Instruction


class BadArguments(ValueError):
    """Arguments that do not fit the kernel's metadata, or a chip that is not the kernel's."""


@dataclass(frozen=True)
class Options:
    """How to run: ``jitter`` lets approximating instructions answer the other neighbour; ``strict`` makes two stores of
    one byte by one instruction a fault even where they agree; ``fair`` lets no wave run ahead of another, for kernels
    that rely on it; ``groups`` runs these workgroups alone.
    """

    jitter: bool = False
    seed: int = 0
    strict: bool = True
    strict_lds: bool = True
    fair: bool = False
    groups: Sequence[Size] | None = None


@dataclass(frozen=True)
class Result:
    """What ran, what memory looked like afterwards, and the seconds it took."""

    machine: Machine
    memory: Memory
    seconds: float

    @property
    def executed(self) -> int:
        """Wave instructions."""
        return self.machine.executed

    def written(self, argument: int) -> np.ndarray:
        """How often each byte of an argument's storage was stored."""
        return self.memory.writes_of(f"arg{argument}")


def run(
    program: Sequence[Instruction],
    kernel: Kernel,
    arch: str,
    values: Sequence[Any],
    grid: Size,
    block: Size,
    *,
    lds: int | None = None,
    outputs: Collection[int] = (),
    options: Options | None = None,
) -> Result:
    """Execute, and copy the results back into the tensors.

    ``values`` are the explicit arguments in order: tensors, numbers, bytes, None for a null pointer. Storages of the
    arguments in ``outputs`` begin unwritten: reading them is a fault. ``lds`` is for kernels that are told at launch.
    """
    options = options or Options()
    memory = Memory()
    memory.strict = options.strict
    data, placed = kernarg(kernel, values, memory, grid, block, outputs)
    address = memory.add("kernarg", np.frombuffer(data, np.uint8).copy())
    machine = Machine(
        program, kernel, memory, arch, instructions.build, grid, block, address,
        kernel.lds if lds is None else lds, jitter=options.jitter, seed=options.seed, preload=_preloaded(kernel, data),
        groups=options.groups, strict_lds=options.strict_lds, fair=options.fair,
    )  # fmt: skip
    began = time.perf_counter()
    machine.run()
    seconds = time.perf_counter() - began
    for base, tensor in placed.values():
        b = next(b for b in memory.buffers if base == BASE + b.start)
        _set_bytes(tensor, memory.data[b.start : b.start + b.size])
    return Result(machine, memory, seconds)


def run_code(
    elf: bytes, code: CodeObject, name: str, values: Sequence[Any], grid: Size, block: Size, **more: Any
) -> Result:
    """Run a kernel from its machine code; `BadArguments`, `NoDisassembler`, `Unknown` or `Fault` say what stops it."""
    if name not in code.kernels:
        raise BadArguments(f"no kernel {name} in this code object: it has {', '.join(code.kernels) or 'none'}")
    kernel = code.kernels[name]
    program = text.from_objdump(objdump.disassemble(elf, code.arch), kernel.entry)
    return run(program, kernel, code.arch, values, grid, block, **more)


def kernarg(
    kernel: Kernel, values: Sequence[Any], memory: Memory, grid: Size, block: Size, outputs: Collection[int] = ()
) -> tuple[bytes, dict[int, tuple[int, Tensor]]]:
    """Bytes of the kernel arguments, and the storages that were placed in memory: address and tensor."""
    out = bytearray(max(kernel.kernarg, 8))
    placed: dict[int, tuple[int, Tensor]] = {}
    explicit = [arg for arg in kernel.meta.get(".args", []) if not arg[".value_kind"].startswith("hidden_")]
    if len(values) > len(explicit):
        raise BadArguments(f"{kernel.name} takes {len(explicit)} arguments, {len(values)} were given")
    missing = [arg.get(".name", str(n)) for n, arg in enumerate(explicit) if n >= len(values)]
    if missing:
        raise BadArguments(f"{kernel.name}: no value for {', '.join(missing)} ({len(explicit)} arguments)")
    for n, (arg, value) in enumerate(zip(explicit, values, strict=False)):
        offset, size, pointer = arg[".offset"], arg[".size"], arg[".value_kind"] == "global_buffer"
        if isinstance(value, Tensor) != pointer and not (pointer and value is None):
            wanted = "a tensor" if pointer else f"{size} bytes by value"
            raise BadArguments(f"{kernel.name}: argument {n} is {wanted}, {type(value).__name__} was given")
        if isinstance(value, Tensor):
            key = value.untyped_storage().data_ptr()
            if key not in placed:
                placed[key] = memory.add(f"arg{n}", _bytes(value), known=n not in outputs), value
            at = placed[key][0] + value.storage_offset() * value.element_size()
            out[offset : offset + 8] = at.to_bytes(8, "little")
        elif value is not None:
            out[offset : offset + size] = _encoded(kernel, n, value, size)
    for arg in kernel.meta.get(".args", []):
        offset, size = arg[".offset"], arg[".size"]
        if arg[".value_kind"] in _HIDDEN:
            out[offset : offset + size] = _HIDDEN[arg[".value_kind"]](grid, block).to_bytes(size, "little")
    return bytes(out), placed


_HIDDEN = {
    "hidden_block_count_x": lambda grid, block: grid[0],
    "hidden_block_count_y": lambda grid, block: grid[1],
    "hidden_block_count_z": lambda grid, block: grid[2],
    "hidden_group_size_x": lambda grid, block: block[0],
    "hidden_group_size_y": lambda grid, block: block[1],
    "hidden_group_size_z": lambda grid, block: block[2],
    "hidden_grid_dims": lambda grid, block: 3 if grid[2] > 1 else 2 if grid[1] > 1 else 1,
}


def _encoded(kernel: Kernel, n: int, value: Any, size: int) -> bytes:
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, float):
        data = struct.pack("<f" if size == 4 else "<d", value)
    else:
        bits = 8 * size
        if not -(1 << (bits - 1)) <= int(value) < 1 << bits:
            raise BadArguments(f"{kernel.name}: argument {n} is {value}, which {size} bytes do not hold")
        data = (int(value) & ((1 << bits) - 1)).to_bytes(size, "little")
    if len(data) != size:
        raise BadArguments(f"{kernel.name}: argument {n} has {size} bytes, {len(data)} were given")
    return data


def _preloaded(kernel: Kernel, data: bytes) -> bytes:
    """What kernarg preload (gfx90a and newer Instinct) puts into scalar registers; code also loads them itself."""
    length, offset = kernel.preload & 0x7F, kernel.preload >> 7
    return data[4 * offset : 4 * (offset + length)].ljust(4 * length, b"\0")


def _bytes(t: Tensor) -> np.ndarray:
    """The bytes of a tensor's whole storage."""
    return np.array(torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).numpy())


def _set_bytes(t: Tensor, data: np.ndarray) -> None:
    torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()).copy_(torch.from_numpy(data.copy()))
