"""Computes of a curated overlay put into the classes of an imported stock module, from the very text that
``overlay install`` would put in the place of the file.

Only the functions that the overlay edits are compiled, in the module's own globals and under its own file name: helpers
are the module's, and what amd_ops asks about a function's identity holds. One boolean per compute decides what the
guards in these functions say; the environment's toggles do not.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

from ..toggle_rules import SWITCHES

_NAME = "_amd"
_DOCUMENTING = "auto_docstring"  # reads its class, and writes a text that the original has already


@dataclass
class Patch:
    """What was changed in a module: (owner, name, the original, ours), in order."""

    module: ModuleType
    changes: list[tuple[Any, str, Any, Any]] = field(default_factory=list)
    computes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    declined: list[str] = field(default_factory=list)

    def labels(self) -> list[str]:
        """Return the names of the functions that were replaced."""
        return [_label(owner, name) for owner, name, _, _ in self.changes]

    def undo(self) -> list[str]:
        """Put every original back, the very objects; return the names of what somebody else replaced since."""
        foreign = []
        for owner, name, original, ours in reversed(self.changes):
            if vars(owner).get(name) is not ours:
                foreign.append(_label(owner, name))
            else:
                setattr(owner, name, original)
        vars(self.module).pop(_NAME, None)
        return foreign


def text_for(module: ModuleType) -> bytes | None:
    """Return the curated overlay text that was made from a module's file as it is; None where there is none."""
    package = find_spec("rocm_overlay")
    if package is None or package.origin is None or module.__file__ is None:
        return None
    path = Path(module.__file__)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for manifest in sorted((Path(package.origin).parent / "overlays").glob("*/manifest.json")):
        for entry in json.loads(manifest.read_bytes())["files"]:
            if entry["stock_sha256"] == digest and path.as_posix().endswith(entry["path"]):
                text = manifest.parent.joinpath(entry["payload"]).read_bytes()
                return text if hashlib.sha256(text).hexdigest() == entry["overlay_sha256"] else None
    return None


def patch(module: ModuleType, text: bytes, computes: frozenset[str]) -> Patch:
    """Put the edited functions of an overlay text into a module; ``computes`` are those whose guards are on."""
    import amd_ops

    done = Patch(module)
    tree = ast.parse(text)
    public = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_ours(node)} - {"on"}
    on = SimpleNamespace(**{name: name in computes for name in SWITCHES})
    vars(module)[_NAME] = SimpleNamespace(on=on, **{name: getattr(amd_ops, name) for name in public})
    try:
        for node in tree.body:  # functions first in the text: what classes name is then ours already
            for owner, function, marks in _edited(node, module):
                _put(done, owner, function, marks, computes)
    except BaseException:
        done.undo()
        raise
    return done


def _is_ours(node: ast.AST) -> Any:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == _NAME


def _edited(node: ast.stmt, module: ModuleType) -> Iterator[tuple[Any, ast.FunctionDef, list[ast.stmt]]]:
    """Yield what the overlay edits at the top level: the owner, the function, and the marks that follow it."""
    if isinstance(node, ast.FunctionDef) and any(_is_ours(one) for one in ast.walk(node)):
        yield module, node, []
    if isinstance(node, ast.ClassDef):
        marks: dict[str, list[ast.stmt]] = {}
        for one in node.body:
            if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Attribute):
                marks.setdefault(ast.unparse(one.targets[0].value), []).append(one)
        for one in node.body:
            if isinstance(one, ast.FunctionDef) and (one.name in marks or any(map(_is_ours, ast.walk(one)))):
                yield getattr(module, node.name, None), one, marks.get(one.name, [])


def _put(done: Patch, owner: Any, function: ast.FunctionDef, marks: list[ast.stmt], computes: frozenset[str]) -> None:
    switches = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute) and _is_switch(node)}
    wanted = tuple(sorted(switches & computes))
    if not wanted and not marks:
        return
    label = _label(owner, function.name)
    original = vars(owner).get(function.name) if owner is not None else None
    if original is None:
        done.declined.append(f"{label}: the module has no such function")
        return
    ours = _compiled(done.module, owner, function, marks)
    if "__class__" in _code(ours).co_freevars:
        done.declined.append(f"{label}: it calls super(), which names its own class")
        return
    ours.__doc__ = original.__doc__
    setattr(owner, function.name, ours)
    done.changes.append((owner, function.name, original, ours))
    if wanted:
        done.computes[label] = wanted


def _is_switch(node: ast.Attribute) -> Any:
    return _is_ours(node.value) and isinstance(node.value, ast.Attribute) and node.value.attr == "on"


def _compiled(module: ModuleType, owner: Any, function: ast.FunctionDef, marks: list[ast.stmt]) -> Any:
    """Compile a function with its marks as its file would have it: same globals, file and qualified name."""
    function.decorator_list = [one for one in function.decorator_list if _DOCUMENTING not in ast.unparse(one)]
    body: list[ast.stmt] = [function, *marks]
    if owner is not module:
        shell = ast.ClassDef(owner.__name__, [], [], body, [])
        vars(shell)["type_params"] = []
        body = [ast.copy_location(shell, function)]
    tree = ast.fix_missing_locations(ast.Module(body, []))
    made: dict[str, Any] = {}
    exec(compile(tree, str(module.__file__), "exec"), vars(module), made)  # the bundle's own text, by its hash
    return made[function.name] if owner is module else vars(made[owner.__name__])[function.name]


def _code(function: Any) -> Any:
    while not isinstance(function, FunctionType) or "__wrapped__" in vars(function):
        function = function.__wrapped__
    return function.__code__


def _label(owner: Any, name: str) -> str:
    return f"{owner.__name__}.{name}" if isinstance(owner, type) else name
