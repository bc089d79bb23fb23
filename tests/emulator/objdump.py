"""Machine code to text by llvm-objdump, where one is installed that knows the chip."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile

_NAMES = ("llvm-objdump", *(f"llvm-objdump-{n}" for n in range(24, 17, -1)), "/opt/rocm/llvm/bin/llvm-objdump")
_VOP3 = (0b110101, 0b110100, 0b110011)  # VOP3 and VOP3P, GFX9 and newer


_SINCE = {"gfx940": 16, "gfx942": 17, "gfx1200": 18, "gfx1201": 18, "gfx950": 20, "gfx1250": 21}
"""The release of LLVM that first knows a chip, where older ones are about."""


class NoDisassembler(RuntimeError):
    """No llvm-objdump here knows the chip."""


def installed() -> list[str]:
    """Every llvm-objdump on this machine, by its path."""
    return [path for path in map(shutil.which, _NAMES) if path is not None]


def missing(arch: str) -> str:
    """Say why machine code of ``arch`` cannot be read here; "" where it can."""
    for path in installed():
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        version = re.search(r"version (\d+)", done.stdout)
        if "amdgcn" in done.stdout and version and int(version[1]) >= _SINCE.get(arch, 0):
            return ""
    return f"no llvm-objdump that knows {arch} is installed (Debian and Ubuntu: llvm-{max(_SINCE.get(arch, 0), 19)})"


def disassemble(elf: bytes, arch: str) -> str:
    """The text of a code object; `NoDisassembler` where nothing here knows the chip.

    LLVM since 20 fills the unused third operand of a VOP3 with 0x80 (the constant 0), which the disassembler of LLVM 19
    refuses: where it gives up on such a word, that field is cleared and it is asked again.
    """
    data = bytearray(elf)
    text = ""
    for _ in range(60):
        text = _run(bytes(data), arch)
        if not _cleared(data, text):
            break
    return text


def _run(data: bytes, arch: str) -> str:
    said = []
    with tempfile.NamedTemporaryFile(suffix=".co") as file:
        file.write(data)
        file.flush()
        for path in installed():
            command = [path, "-d", f"--mcpu={arch}", file.name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0 and "not a recognized processor" not in done.stderr:
                return done.stdout
            said.append(f"{path}: {(done.stderr.strip().splitlines() or ['failed'])[0][:160]}")
    raise NoDisassembler("; ".join([missing(arch), *said]).removeprefix("; "))


def _cleared(data: bytearray, text: str) -> int:
    """Clear the filler in every word that the disassembler refused; how many there were."""
    (phoff,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, phoff + n * size) for n in range(count)]
    cleared = 0
    for word, where in re.findall(r"\.long 0x([0-9a-f]{8})\s*// ([0-9A-F]+):", text):
        address = int(where, 16)
        inside = [s for s in segments if s[0] == 1 and s[3] <= address < s[3] + s[5]]
        if int(word, 16) >> 26 not in _VOP3 or not inside:
            continue
        at = address - inside[0][3] + inside[0][2]
        (second,) = struct.unpack_from("<I", data, at + 4)
        for shift in (18, 9):  # the third operand, and the second of an instruction that has one
            if (second >> shift) & 0x1FF == 0x80:
                struct.pack_into("<I", data, at + 4, second & ~(0x1FF << shift))
                cleared += 1
                break
    return cleared
