"""Cut a decorated class or function out of a config file as text, with its comments and multi-line signature."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import FrameType

from ...errors import Place
from .patches import ConfigError, Definition
from .snippet import dedent

# Methods of PatchConfig that may decorate a definition: a decorator of this form is ours and not part of the text.
DECORATORS = frozenset(("replace_class", "replace_function", "override_method", "modify_init", "add_helper"))

DefinitionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def is_patch_decorator(node: ast.expr) -> bool:
    """Say whether a decorator is ``<something>.replace_class(...)`` or another one of ours."""
    function = node.func if isinstance(node, ast.Call) else node
    return isinstance(function, ast.Attribute) and function.attr in DECORATORS


def place_of(frame: FrameType) -> Place:
    """The line that a frame is executing."""
    return Place(frame.f_code.co_filename, frame.f_lineno)


def at_line(path: str, line: int) -> Definition:
    """The definition whose ``def`` or ``class`` stands on a line."""
    for node in _definitions(path):
        if node.lineno == line:
            return _cut(path, node)
    raise _unreadable(path, line, "no class or function begins there")


def of_object(thing: object, call: Place) -> Definition:
    """The definition of a class or function that a patch was given.

    Args:
        thing: what the decorator or method of the config received.
        call: where the patch is written; a decorator on that line belongs to the definition meant.
    """
    if isinstance(thing, Definition):
        return thing
    if Path(call.path).is_file():
        for node in _definitions(call.path):
            for decorator in node.decorator_list:
                # Python 3.10 runs a decorator without parentheses on the line of the definition.
                lines = (*range(decorator.lineno, _last(decorator) + 1), node.lineno)
                if is_patch_decorator(decorator) and call.line in lines:
                    return _cut(call.path, node)
    if inspect.isclass(thing):
        return _class_in_file(thing, call)
    code = getattr(inspect.unwrap(thing) if callable(thing) else thing, "__code__", None)
    if code is None:
        raise ConfigError(
            "this patch was not given a class or function", place=call, expected="a definition", found=repr(thing)[:80]
        )
    for node in _definitions(code.co_filename):
        if min(node.lineno, *(one.lineno for one in node.decorator_list), node.lineno) == code.co_firstlineno:
            return _cut(code.co_filename, node)
    raise _unreadable(code.co_filename, code.co_firstlineno, "no function begins there; a lambda cannot be a patch")


def _class_in_file(thing: type, call: Place) -> Definition:
    module = sys.modules.get(thing.__module__)
    path = getattr(module, "__file__", None) or call.path
    wanted = thing.__name__
    found = [node for node in _definitions(path) if isinstance(node, ast.ClassDef) and node.name == wanted]
    if len(found) != 1:
        raise ConfigError(
            f"cannot find the source of class {wanted}",
            place=call,
            expected=f"one class {wanted} in {path}",
            found=f"{len(found)} classes of that name",
        )
    return _cut(path, found[0])


@lru_cache(maxsize=16)
def _parse(data: bytes) -> tuple[ast.Module, tuple[str, ...]]:
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    return ast.parse(text), tuple(text.split("\n"))


def _file(path: str) -> tuple[ast.Module, tuple[str, ...]]:
    try:
        return _parse(Path(path).read_bytes())
    except (OSError, ValueError, SyntaxError) as error:
        raise _unreadable(path, None, str(error)) from error


def _definitions(path: str) -> Iterator[DefinitionNode]:
    for node in ast.walk(_file(path)[0]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node


def _last(node: ast.expr | ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _cut(path: str, node: DefinitionNode) -> Definition:
    lines = _file(path)[1]
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    ours: set[int] = set()
    for decorator in node.decorator_list:
        if is_patch_decorator(decorator):
            ours.update(range(decorator.lineno, _last(decorator) + 1))
    begin = first
    indent = lines[node.lineno - 1][: node.col_offset]
    while begin > 1 and lines[begin - 2].startswith(f"{indent}#"):
        begin -= 1
    end = last_line(lines, node)
    kept = [lines[number - 1] for number in range(begin, end + 1) if number not in ours]
    place = Place(path, node.lineno)
    text = dedent("\n".join(kept) + "\n", node.col_offset, place)
    _check(text, node, place)
    return Definition(node.name, text, place)


def accessor_in(text: str) -> str:
    """``setter`` or ``deleter`` where the text of a definition has that decorator, else the empty string."""
    node = ast.parse(text).body[0]
    return accessor_of(node) if isinstance(node, DefinitionNode) else ""


def accessor_of(node: DefinitionNode) -> str:
    """``setter`` or ``deleter`` of a property, ``overload`` of a typing overload, else the empty string."""
    for decorator in node.decorator_list:
        name = decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
        if name in ("setter", "deleter", "overload"):
            return str(name)
    return ""


def last_line(lines: tuple[str, ...], node: ast.stmt) -> int:
    """The last line of a definition, with the comments at its end that are indented deeper than it is."""
    end = last = _last(node)
    for number in range(end + 1, len(lines) + 1):
        line = lines[number - 1]
        stripped = line.lstrip()
        if stripped and not (stripped.startswith("#") and len(line) - len(stripped) > node.col_offset):
            break
        if stripped:
            last = number
    return last


def _check(text: str, node: DefinitionNode, place: Place) -> None:
    """What was cut must be the definition without our decorators: anything else would be a silent change."""
    kept = [one for one in node.decorator_list if not is_patch_decorator(one)]
    try:
        body = ast.parse(text).body
    except SyntaxError:
        body = []
    found = body[0] if len(body) == 1 else None
    same = (
        isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and found.name == node.name
        and [ast.dump(one) for one in found.decorator_list] == [ast.dump(one) for one in kept]
        and len(found.body) == len(node.body)
    )
    if not same:
        raise ConfigError(
            f"cannot cut {node.name} out of its file",
            place=place,
            expected="one definition, each decorator on lines of its own",
        )


def _unreadable(path: str, line: int | None, reason: str) -> ConfigError:
    return ConfigError(
        "cannot read the source of this patch",
        place=Place(path, line),
        expected="a definition in a Python file",
        found=reason,
        remedy="write patches in a file, not in an interactive session",
    )
