"""The dependency directions of the house: which room may import what. Read from the sources, nothing is imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"amd_ops": ROOT / "amd_ops", "rocm_overlay": ROOT / "installer" / "rocm_overlay"}


def _sources(room: str, *inside: str) -> list[Path]:
    folder = ROOMS[room].joinpath(*inside)
    found = [folder] if folder.is_file() else sorted(folder.rglob("*.py"))
    # overlays/ is a link to generated files, which have tests of their own.
    return [path for path in found if "overlays" not in path.relative_to(ROOMS[room]).parts]


def _package(path: Path) -> list[str]:
    for name, folder in ROOMS.items():
        if path.is_relative_to(folder):
            return [name, *path.relative_to(folder).parent.parts]
    raise AssertionError(path)


def _imports(path: Path) -> Iterator[str]:
    """Yield the absolute dotted name of every import in a file, function-local ones too."""
    package = _package(path)
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _top(name: str) -> str:
    return name.split(".")[0]


def _foreign(paths: list[Path], allowed: set[str]) -> list[str]:
    assert paths, "the rule looks at no file"
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for name in _imports(path)
        if _top(name) not in allowed and _top(name) not in sys.stdlib_module_names
    ]


def test_amd_ops_imports_torch_and_nothing_of_ours() -> None:
    # triton belongs to the kernels of backends/triton alone, aiter to backends/aiter alone.
    paths = [p for p in _sources("amd_ops") if "backends" not in p.relative_to(ROOMS["amd_ops"]).parts]
    assert _foreign(paths, {"amd_ops", "torch"}) == []


def test_only_one_package_knows_aiter() -> None:
    knows = {
        path.relative_to(ROOT).as_posix()
        for path in _sources("amd_ops")
        for name in _imports(path)
        if _top(name) == "aiter"
    }
    assert {path for path in knows if not path.startswith("amd_ops/backends/aiter/")} == set()


def test_the_installer_room_has_no_torch_transformers_or_libcst() -> None:
    assert _foreign(_sources("rocm_overlay", "install"), {"rocm_overlay", "packaging", "filelock"}) == []


def test_the_transaction_imports_only_the_standard_library_packaging_and_filelock() -> None:
    names = [
        f"{path.name}: {name}"
        for path in _sources("rocm_overlay", "install", "transaction")
        for name in _imports(path)
        if _top(name) == "rocm_overlay"
        and not name.startswith(("rocm_overlay.install.transaction", "rocm_overlay.install.errors"))
    ]
    assert names == []


def test_patchgen_needs_no_torch() -> None:
    assert _foreign(_sources("rocm_overlay", "patchgen"), {"rocm_overlay", "libcst", "packaging", "rich"}) == []


def test_nothing_imports_the_command_line() -> None:
    importers = [
        f"{path.relative_to(ROOT)}: {name}"
        for room in ROOMS
        for path in _sources(room)
        if path.name not in ("cli.py", "__main__.py") and "cli" not in path.relative_to(ROOMS[room]).parts
        for name in _imports(path)
        if name.startswith("rocm_overlay.cli")
    ]
    assert importers == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_only_verify_and_synth_cross_from_the_tool_to_the_run_time(room: str) -> None:
    other = next(name for name in ROOMS if name != room)
    crossing = {
        path.relative_to(ROOMS[room]).parts[0]
        for path in _sources(room)
        for name in _imports(path)
        if _top(name) == other
    }
    assert crossing <= ({"verify", "synth"} if room == "rocm_overlay" else set())


def test_forward_code_reads_no_environment() -> None:
    readers = {
        path.relative_to(ROOMS["amd_ops"]).as_posix()
        for path in _sources("amd_ops")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    assert readers <= {"toggles.py"}
