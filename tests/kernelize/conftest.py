"""A registry of its own for every test, throw-away packages on the path, and a machine that has whatever device a test
says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import amd_ops
from amd_ops.kernelize import conditions, function, layers, proof, restore_function_kernels, use_kernels


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Nothing registered, replaced, proven or warned about in one test reaches another."""
    before = set(sys.modules)
    proof.forget()
    function.rows.clear()
    with use_kernels(inherit=False):
        yield
    restore_function_kernels()
    function.rows.clear()
    layers.forget()
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "their_", "_amd_ops_kernel_")):
            del sys.modules[name]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType | None]:
    """Return ``package(name, {file: text})``: writes a package into a folder on sys.path; returns the folder."""

    def write(name: str, files: dict[str, str], importable: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        files = {"__init__.py": "", **files}
        for file, text in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
        if importable:
            monkeypatch.syspath_prepend(str(tmp_path))
        return folder

    return write  # type: ignore[return-value]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return ``gpu("gfx942")``: CPU tensors count as that AMD GPU from now on."""

    def appear(arch: str) -> None:
        found = amd_ops.device.Device(type="cpu", arch=arch, cu_count=304)
        monkeypatch.setattr(amd_ops.device, "_probe", lambda: found)
        amd_ops.refresh()

    yield appear
    monkeypatch.undo()
    amd_ops.refresh()


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has a CUDA device whose tensors are CPU tensors."""
    real = conditions.find_device
    present = conditions.Present("cuda", "", "cpu")
    for module in (conditions, layers, function):
        monkeypatch.setattr(module, "find_device", lambda kind: present if kind == "cuda" else real(kind))
