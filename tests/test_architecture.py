"""The dependency directions of the house: which room may import what, that imports make no circle, and that files and
functions stay short. Read from the sources, nothing is imported.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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
    """Yield the absolute dotted name of every import in a file: of functions, and for typing alone, too."""
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
    merge = "amd_ops/gemm_tables.py: rocm_overlay."  # of tables: the program's, which needs no torch, and late
    assert [one for one in _foreign(paths, {"amd_ops", "torch"}) if not one.startswith(merge)] == []


def test_only_one_package_knows_aiter() -> None:
    knows = {
        path.relative_to(ROOT).as_posix()
        for path in _sources("amd_ops")
        for name in _imports(path)
        if _top(name) == "aiter"
    }
    assert {path for path in knows if not path.startswith("amd_ops/backends/aiter/")} == set()


def test_the_installer_room_has_no_torch_transformers_or_libcst() -> None:
    paths = [path for path in _sources("rocm_overlay", "install") if path.name != "cli.py"]
    assert _foreign(paths, {"rocm_overlay", "packaging", "filelock"}) == []


def test_the_transaction_imports_only_the_standard_library_packaging_and_filelock() -> None:
    names = [
        f"{path.name}: {name}"
        for path in _sources("rocm_overlay", "install", "transaction")
        for name in _imports(path)
        if _top(name) == "rocm_overlay"
        and not name.startswith(("rocm_overlay.install.transaction", "rocm_overlay.errors"))
        and name != "rocm_overlay"
    ]
    assert names == []
    assert _foreign(_sources("rocm_overlay", "errors.py"), {"rocm_overlay"}) == []
    assert not [name for name in _imports(ROOMS["rocm_overlay"] / "errors.py") if _top(name) == "rocm_overlay"]


def test_patchgen_needs_no_torch() -> None:
    allowed = {"rocm_overlay", "libcst", "packaging", "rich", "typer"}
    assert _foreign(_sources("rocm_overlay", "patchgen"), allowed) == []


def test_tables_need_no_torch_pandas_or_rich() -> None:
    """rich may come with typer's error pages, but nothing here asks for it."""
    paths = [path for path in _sources("rocm_overlay", "tune") if path.parent.name != "on_device"]
    assert _foreign(paths, {"rocm_overlay", "typer", "packaging"}) == []


def test_what_rooms_share_knows_no_room_but_the_installer() -> None:
    folder = ROOMS["rocm_overlay"]
    shared = [path for path in folder.glob("*.py") if path.name != "__main__.py"]
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")} - {"executor", "install", "overlays"}
    assert rooms >= {"bench", "cli", "patchgen", "synth", "tune", "verify"}, "the rule looks at no room"
    known = [
        f"{path.name}: {name}"
        for path in [*shared, *_sources("rocm_overlay", "executor")]
        for name in _imports(path)
        if name.startswith("rocm_overlay.") and name.split(".")[1] in rooms
    ]
    assert known == []


def test_nothing_imports_the_command_line() -> None:
    """Not the program, not the table of contents, not the options of a room."""
    importers = [
        f"{path.relative_to(ROOT)}: {name}"
        for room in ROOMS
        for path in _sources(room)
        if path.name not in ("__main__.py", "app.py") and path.parent.name != "cli"
        for name in _imports(path)
        if name == "rocm_overlay.app" or name.startswith("rocm_overlay.cli") or ".cli." in f"{name}."
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
    assert crossing == ({"verify", "synth"} if room == "rocm_overlay" else {"gemm_tables.py"})  # tune's merge, late


STOREYS = ("", "backends", "weights", "ops", "forward", "plans")
"""amd_ops from the ground up; "" is its own files. What a storey imports of amd_ops lies on it or below."""
ENTRANCES = ("__init__", "module_api", "preparation", "reporting")
"""Files of amd_ops that serve its users, from above all storeys."""
HANDED_THE_ENVIRONMENT = {"amd_ops.backends.triton", "amd_ops.backends.triton.target"}
"""toggles alone reads the environment, and hands it to what is named here."""


def test_the_run_time_layer_is_built_in_storeys() -> None:
    modules, wrong, looked_at = _modules(), [], set()
    for path in _sources("amd_ops"):
        folder = path.relative_to(ROOMS["amd_ops"]).parts[0] if path.parent != ROOMS["amd_ops"] else ""
        if folder not in STOREYS or (not folder and path.stem in ENTRANCES):
            continue
        for name in _imports(path):
            parts = name.split(".")
            if name not in modules or parts[0] != "amd_ops" or len(parts) < 2:
                continue
            other = parts[1] if parts[1] in (*STOREYS, "kernelize") else ""
            looked_at.add((folder, other))
            above = other == "kernelize" or STOREYS.index(other) > STOREYS.index(folder)
            handed = path.stem == "toggles" and name in HANDED_THE_ENVIRONMENT
            if (above and not handed) or (not other and parts[1] in ENTRANCES):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert {("forward", "ops"), ("ops", "weights"), ("weights", "backends"), ("plans", "forward")} <= looked_at
    assert sorted(set(wrong)) == []


def test_forward_code_reads_no_environment() -> None:
    readers = {
        path.relative_to(ROOMS["amd_ops"]).as_posix()
        for path in _sources("amd_ops")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    }
    assert readers <= {"toggles.py"}


RECIPES = ROOMS["rocm_overlay"] / "overlays" / "recipes"


def _modules() -> dict[str, Path]:
    """Every module of both packages, and of the recipes that are written with them, by its dotted name."""
    found = {}
    for path in [*_sources("amd_ops"), *_sources("rocm_overlay"), *sorted(RECIPES.glob("*.py"))]:
        parts = [*_package(path), *([] if path.stem == "__init__" else [path.stem])]
        found[".".join(parts)] = path
    return found


def _with_packages(name: str) -> Iterator[str]:
    """Yield a module and the packages that are imported before it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def test_imports_make_no_circle() -> None:
    """Late imports count, too: they may save start-up time, and may not hide that two modules need each other."""
    modules = _modules()
    graph = {
        name: {one for found in _imports(path) for one in _with_packages(found) if one in modules}
        for name, path in modules.items()
    }
    for name, needed in graph.items():
        needed -= set(_with_packages(name))  # its own packages are being imported already
    assert "amd_ops.toggles" in graph["amd_ops.dispatch"], "the graph lacks an edge: the rule looks at nothing"
    assert "amd_ops.kernelize" in graph["amd_ops"], "the graph lacks a late import"
    assert "rocm_overlay.overlays.recipes" in graph["rocm_overlay.patchgen.command"], "the graph lacks the recipes"
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


# Everything that is written by hand. Generated overlays are as long as stock is.
WRITTEN = ("amd_ops", "installer/rocm_overlay", "overlays", "tests", "benchmarks", "examples", "docs")
LONGEST_FILE, LONGEST_FUNCTION = 600, 60
REASON = re.compile(r"# long: \S.*")


def _written() -> Iterator[tuple[Path, list[str]]]:
    for folder in WRITTEN:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).parts
            generated = parts[0] == "overlays" and parts[1][0].isdigit()
            linked = parts[:3] == ("installer", "rocm_overlay", "overlays")
            if not generated and not linked:
                yield path, path.read_text().splitlines()


def _long(path: Path, lines: list[str]) -> Iterator[str]:
    """Yield what is too long in a file and has no ``# long: reason`` in its first line, or just above its ``def``."""
    name = path.relative_to(ROOT)
    if len(lines) > LONGEST_FILE and not REASON.match(lines[0]):
        yield f"{name}: {len(lines)} lines"
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > LONGEST_FUNCTION and not REASON.match(lines[node.lineno - 2].strip()):
                yield f"{name}:{node.lineno}: {node.name} has {length} lines"


def test_files_and_functions_are_short_or_say_why_not() -> None:
    found = list(_written())
    assert len(found) > 300, "the rule looks at nearly nothing"
    assert [one for path, lines in found for one in _long(path, lines)] == []


SHORTEST_FILE = 40
RUN_BY_NAME = {
    "sitecustomize",  # by Python itself
    "torch-universal.layers",  # by the kernels library
    "__main__",
    "worker",
    "proof",
    "child_plugin",
    "reference",
}
"""Files that another process runs or loads by their name; such a name stays (pickles, ``-m``, test files on disk)."""


def test_a_short_file_is_used_in_more_places_than_one() -> None:
    """Else it only adds a stop to a reader's way, and belongs into the file that uses it."""
    modules = _modules()
    importers: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for found in _imports(path):
            if found in modules and found != name:
                importers[found].add(name)
    short = {
        name
        for name, path in modules.items()
        if len(path.read_text().splitlines()) < SHORTEST_FILE and len(importers[name]) < 2 and path.stem != "__init__"
    }
    assert len(short) >= len(RUN_BY_NAME), "the rule looks at nearly nothing"
    assert [name for name in sorted(short) if not name.endswith(tuple(RUN_BY_NAME))] == []


def test_the_rule_about_length_finds_what_is_long(tmp_path: Path) -> None:
    body = ["    pass"] * LONGEST_FUNCTION
    assert list(_long(ROOT / "x.py", ["def f():", *body])) == [f"x.py:1: f has {LONGEST_FUNCTION + 1} lines"]
    assert list(_long(ROOT / "x.py", ["# long: one option a line", "def f():", *body])) == []
    assert list(_long(ROOT / "x.py", ["# long:", "def f():", *body])) != []
    assert list(_long(ROOT / "x.py", ["x = 1"] * (LONGEST_FILE + 1))) == [f"x.py: {LONGEST_FILE + 1} lines"]
