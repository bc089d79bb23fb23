"""What the commands of the installer room load, and how the room may write."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.support import ROOT, run_process

INSTALL = ROOT / "installer" / "rocm_overlay" / "install"
WRITING_NAMES = {
    "copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "link", "symlink", "rename", "renames", "replace",
    "write_text", "write_bytes", "extractall", "unlink", "remove", "rmtree", "mkdir", "makedirs", "touch", "chmod",
    "chown", "utime", "hardlink_to", "symlink_to",
}  # fmt: skip
OS_MODULES = {"os", "shutil", "Path", "pathlib"}

COMMANDS = [
    ["--help"],
    ["install", "--transformers", "4.57", "--site-packages", "SITE"],
    ["status", "--json", "--site-packages", "SITE"],
    ["diff", "--site-packages", "SITE"],
    ["recover", "--site-packages", "SITE"],
    ["revert", "--site-packages", "SITE"],
    ["list"],
    ["env", "--gpu", "gfx942"],
    ["doctor", "--site-packages", "SITE"],
    ["status", "--deep", "--site-packages", "SITE"],
    ["attest", "--site-packages", "SITE"],
    ["export", "--transformers", "4.57.6", "--models", "llama"],
    ["scan", "SITE/transformers/models/llama"],
]
HEAVY = {"torch", "transformers", "libcst", "numpy", "rich", "amd_ops"}


def test_no_command_imports_anything_heavy(site: Path) -> None:
    code = """
import json, sys
from rocm_overlay.app import run
commands = json.loads(sys.argv[1])
codes = [run(command) for command in commands]
print("\\n" + json.dumps([codes, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
    commands = [[word.replace("SITE", str(site)) for word in command] for command in COMMANDS]
    done = run_process(json.dumps(commands), code=code)
    codes, modules = json.loads(done.out.splitlines()[-1])
    assert codes == [0] * len(COMMANDS)
    assert HEAVY & set(modules) == set()


@pytest.mark.parametrize("command", [["--version"], ["list"], ["status", "--site-packages", "SITE"]])
def test_filelock_and_packaging_are_not_loaded_where_nothing_is_changed(site: Path, command: list[str]) -> None:
    code = (
        "import sys, rocm_overlay.cli as cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('LOADED', {'filelock', 'packaging', 'pydantic', 'typer'} & set(sys.modules))"
    )
    done = run_process(*(str(site) if word == "SITE" else word for word in command), code=code)
    expected = "set()" if command == ["--version"] else "{'typer'}"
    assert done.out.splitlines()[-1] == f"LOADED {expected}"


def _sources() -> Iterator[Path]:
    for path in sorted(INSTALL.rglob("*.py")):
        if path != INSTALL / "transaction" / "fs.py":
            yield path


def _writes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id == "open" and len(node.args) + len(node.keywords) > 1:
                yield f"line {node.lineno}: open() with a mode"
            if isinstance(function, ast.Attribute) and function.attr == "open" and ast.unparse(function.value) == "os":
                yield f"line {node.lineno}: os.open"
            if isinstance(function, ast.Attribute) and function.attr in WRITING_NAMES:
                owner = ast.unparse(function.value)
                on_a_path = function.attr.startswith(("write_", "extractall", "hardlink", "symlink_to", "touch"))
                if owner in OS_MODULES or on_a_path:
                    yield f"line {node.lineno}: {owner}.{function.attr}"


@pytest.mark.parametrize("path", list(_sources()), ids=lambda path: path.relative_to(INSTALL).as_posix())
def test_only_the_port_writes(path: Path) -> None:
    assert list(_writes(ast.parse(path.read_bytes()))) == []


def test_the_check_would_see_a_write() -> None:
    bad = "import os, shutil\nopen('x', 'w')\nos.rename('a', 'b')\nshutil.copy2('a', 'b')\npath.write_text('')\n"
    assert len(list(_writes(ast.parse(bad)))) == 4
