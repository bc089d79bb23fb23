"""An AMD code object: its loadable image, its kernels' descriptors and the layouts of their arguments.

Source: LLVM, "User Guide for AMDGPU Backend": ELF header flags, "Code Object V4/V5 Metadata", "Kernel Descriptor".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any


class BadCodeObject(ValueError):
    """Bytes that are no code object of an AMD GPU, or only a part of one."""


def unpack(data: bytes, at: int = 0) -> tuple[Any, int]:
    """One MessagePack value (the subset that LLVM writes) and where it ends."""
    t = data[at]
    at += 1
    if t <= 0x7F:
        return t, at
    if t >= 0xE0:
        return t - 256, at
    if t <= 0x8F:
        return _map(data, at, t & 15)
    if t <= 0x9F:
        return _list(data, at, t & 15)
    if t <= 0xBF:
        return data[at : at + (t & 31)].decode(), at + (t & 31)
    simple = {0xC0: None, 0xC2: False, 0xC3: True}
    if t in simple:
        return simple[t], at
    numbers = {
        0xCC: ">B",
        0xCD: ">H",
        0xCE: ">I",
        0xCF: ">Q",
        0xD0: ">b",
        0xD1: ">h",
        0xD2: ">i",
        0xD3: ">q",
        0xCA: ">f",
        0xCB: ">d",
    }
    if t in numbers:
        size = struct.calcsize(numbers[t])
        return struct.unpack_from(numbers[t], data, at)[0], at + size
    lengths = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
    if t in lengths:
        size = struct.calcsize(lengths[t])
        (count,) = struct.unpack_from(lengths[t], data, at)
        at += size
        raw = data[at : at + count]
        return (raw.decode() if t >= 0xD9 else raw), at + count
    (count,) = struct.unpack_from(">H" if t in (0xDC, 0xDE) else ">I", data, at)
    at += 2 if t in (0xDC, 0xDE) else 4
    return (_list if t in (0xDC, 0xDD) else _map)(data, at, count)


def _map(data: bytes, at: int, count: int) -> tuple[dict[str, Any], int]:
    out = {}
    for _ in range(count):
        key, at = unpack(data, at)
        out[key], at = unpack(data, at)
    return out, at


def _list(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    out = []
    for _ in range(count):
        value, at = unpack(data, at)
        out.append(value)
    return out, at


@dataclass
class Kernel:
    """One kernel: where it begins, what it needs, and its metadata (``.args`` and more; empty without a note)."""

    name: str
    entry: int  # offset of the first instruction in the image
    lds: int
    scratch: int
    kernarg: int
    rsrc1: int
    rsrc2: int
    rsrc3: int
    properties: int
    preload: int
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def user_sgprs(self) -> int:
        """Scalar registers that hold arguments; the workgroup's place follows."""
        return (self.rsrc2 >> 1) & 0x1F

    @property
    def wave(self) -> int:
        """Lanes of a wave."""
        return 32 if (self.properties >> 10) & 1 else 64


@dataclass
class CodeObject:
    """The image as it lies in memory, and what is in it."""

    image: bytearray
    kernels: dict[str, Kernel]
    machine: int
    symbols: dict[str, tuple[int, int]]

    @property
    def arch(self) -> str:
        """The chip, as ``gfx942``."""
        return MACH.get(self.machine & 0xFF, f"mach{self.machine & 0xFF:#x}")


MACH = {
    0x3F: "gfx90a",
    0x4C: "gfx942",
    0x4F: "gfx950",
    0x41: "gfx1100",
    0x4E: "gfx1201",
    0x48: "gfx1200",
    0x36: "gfx1030",
    0x30: "gfx908",
}


def load(elf: bytes) -> CodeObject:
    """Read a code object; `BadCodeObject` says what is wrong with it."""
    if elf[:5] != b"\x7fELF\x02":
        raise BadCodeObject("no 64-bit ELF file")
    try:
        (machine,) = struct.unpack_from("<H", elf, 18)
        if machine != EM_AMDGPU:
            raise BadCodeObject(f"an ELF file for machine {machine}, not for AMD GPUs ({EM_AMDGPU})")
        return _read(elf)
    except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
        if isinstance(error, BadCodeObject):
            raise
        raise BadCodeObject(f"a truncated or damaged code object of {len(elf)} bytes: {error}") from error


EM_AMDGPU = 224
_NT_AMDGPU_METADATA = 32


def _read(elf: bytes) -> CodeObject:
    shoff, flags = struct.unpack_from("<QI", elf, 40)
    shentsize, shnum = struct.unpack_from("<HH", elf, 58)
    image, notes = _segments(elf)
    symbols, relocations = _symbols(elf, [shoff + n * shentsize for n in range(shnum)])
    if relocations:
        raise BadCodeObject(f"{relocations} relocations: only linked code objects can be executed")
    kernels = {}
    described = {m[".symbol"]: m for m in _metadata(notes).get("amdhsa.kernels", [])}
    for symbol in described or [name for name in symbols if name.endswith(".kd")]:
        if symbol not in symbols:
            raise BadCodeObject(f"the metadata names {symbol}, which is no symbol of the file")
        meta = described.get(symbol, {})
        name = meta.get(".name", symbol.removesuffix(".kd"))
        kernels[name] = _kernel(name, image, symbols[symbol][0], meta)
    return CodeObject(image, kernels, flags, symbols)


def _segments(elf: bytes) -> tuple[bytearray, list[bytes]]:
    """The loaded image and the notes."""
    (phoff,) = struct.unpack_from("<Q", elf, 32)
    phentsize, phnum = struct.unpack_from("<HH", elf, 54)
    image, notes = bytearray(), []
    for n in range(phnum):
        kind, _, off, vaddr, _, filesz, memsz, _ = struct.unpack_from("<IIQQQQQQ", elf, phoff + n * phentsize)
        if kind in (1, 4) and off + filesz > len(elf):
            raise BadCodeObject(f"segment {n} ends at byte {off + filesz} of {len(elf)}: the file is truncated")
        if kind == 1:
            image.extend(bytes(max(vaddr + memsz - len(image), 0)))
            image[vaddr : vaddr + filesz] = elf[off : off + filesz]
        elif kind == 4:
            notes.append(elf[off : off + filesz])
    return image, notes


def _metadata(notes: list[bytes]) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    for note in notes:
        at = 0
        while at + 12 <= len(note):
            namesz, descsz, kind = struct.unpack_from("<III", note, at)
            desc = at + 12 + (namesz + 3 & ~3)
            if kind == _NT_AMDGPU_METADATA:
                meta, _ = unpack(note[desc : desc + descsz])
            at = desc + (descsz + 3 & ~3)
    return meta


def _symbols(elf: bytes, headers: list[int]) -> tuple[dict[str, tuple[int, int]], int]:
    """Names to (address, size), and how many relocations there are."""
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, at) for at in headers]
    symbols: dict[str, tuple[int, int]] = {}
    relocations = 0
    for section in sections:
        if section[1] in (2, 11):  # SYMTAB, DYNSYM
            strings = sections[section[6]][4]
            for at in range(section[4], section[4] + section[5], 24):
                name, _info, _other, _shndx, value, size = struct.unpack_from("<IBBHQQ", elf, at)
                end = elf.index(b"\0", strings + name)
                symbols[elf[strings + name : end].decode()] = value, size
        elif section[1] == 4:  # RELA
            relocations += section[5] // 24
    return symbols, relocations


def _kernel(name: str, image: bytearray, at: int, meta: dict[str, Any]) -> Kernel:
    """Read a kernel descriptor of 64 bytes."""
    lds, scratch, kernarg, _, entry = struct.unpack_from("<IIIIq", image, at)
    rsrc3, rsrc1, rsrc2, properties, preload = struct.unpack_from("<IIIHH", image, at + 44)
    return Kernel(name, at + entry, lds, scratch, kernarg, rsrc1, rsrc2, rsrc3, properties, preload, meta)
