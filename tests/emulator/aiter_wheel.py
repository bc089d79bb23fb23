"""The wheel ``amd-aiter`` as a box of code objects: found where the tests keep wheels, read without being installed.

It is optional: ``missing()`` says why it, or a disassembler for its code, cannot be had, and the tests skip with that.
"""

from __future__ import annotations

import functools
import os
import zipfile
from pathlib import Path

from . import objdump, text
from .codeobject import CodeObject, Kernel, load
from .text import Instruction

VERSION = "0.1.7.post2.dev18"
ARCH = "gfx942"
_NAME = f"amd_aiter-{VERSION}-py3-none-any.whl"


def wheel() -> Path | None:
    """Where the wheel lies: in the folder of OVERLAY_TEST_WHEELS or in .cache/wheels."""
    folders = [os.environ.get("OVERLAY_TEST_WHEELS", ""), Path(__file__).resolve().parents[2] / ".cache" / "wheels"]
    return next((Path(f) / _NAME for f in folders if f and (Path(f) / _NAME).is_file()), None)


def missing() -> str:
    """Say why AMD's own kernels cannot be executed here; "" where they can."""
    if wheel() is None:
        return f"{_NAME} is not at hand (`make wheels` fetches it where the index has it)"
    return objdump.missing(ARCH)


def read(name: str) -> bytes:
    """A code object by its path below ``aiter_meta/hsa/gfx942``; KeyError with the path where the wheel has none."""
    found = wheel()
    assert found is not None, missing()
    with zipfile.ZipFile(found) as archive:
        return archive.read(f"aiter_meta/hsa/{ARCH}/{name}")


def unpack_python(folder: Path) -> None:
    """Put aiter's Python layer into ``folder``; no kernel."""
    found = wheel()
    assert found is not None, missing()
    with zipfile.ZipFile(found) as archive:
        wanted = [n for n in archive.namelist() if n.startswith(("aiter/", "aiter_meta/csrc/cpp_itfs/"))]
        archive.extractall(folder, wanted)
    for name in ("csrc/include", "3rdparty", "hsa/gfx942"):
        (folder / "aiter_meta" / name).mkdir(parents=True, exist_ok=True)


@functools.cache
def kernel(name: str) -> tuple[CodeObject, Kernel, tuple[Instruction, ...]]:
    """The one kernel of a code object, disassembled."""
    elf = read(name)
    code = load(elf)
    (found,) = code.kernels.values()
    return code, found, tuple(text.from_objdump(objdump.disassemble(elf, code.arch), found.entry))
