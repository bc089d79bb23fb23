"""The stock module: where its text comes from, and where its definitions and imports lie. Nothing is imported."""

from __future__ import annotations

import ast
import importlib.util
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...errors import Place, nearest
from ..source import Source
from ..trees import Tree, open_tree
from .annotations import reads_unions
from .definition import DefinitionNode, accessor_of, last_line
from .patches import ConfigError, MissingTargetError

_NEWLINE = re.compile(rb"\r\n|\n|\r")
ImportNode = ast.Import | ast.ImportFrom

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_KINDS: dict[str, tuple[type[DefinitionNode], ...]] = {
    "class": (ast.ClassDef,),
    "function": _FUNCTIONS,
    "definition": (ast.ClassDef, *_FUNCTIONS),
}


@dataclass(frozen=True)
class StockModule:
    """Text of the module that a config patches, and the release it is from."""

    name: str
    package: str
    release: str
    path: str
    data: bytes
    reads_unions: bool = True  # whether the release's auto_docstring can read an annotation ``A | B``


def find_module(name: str, place: Place, tree: Path | None = None) -> StockModule:
    """Read a module's source without importing it or any of its parents.

    Args:
        name: dotted name.
        place: the config, for messages.
        tree: a folder or wheel to read ``transformers`` from; default: what this interpreter would import.

    Raises:
        ConfigError: there is no such module or it has no source.
    """
    top, *rest = name.split(".")
    root = open_tree(tree) if tree is not None and top == "transformers" else _package(top, name, place)
    base = "/".join(rest)
    for path in (f"{base}.py", f"{base}/__init__.py") if base else ("__init__.py",):
        if root.has(path):
            break
    else:
        known = [file[: -len(".py")].replace("/", ".") for file in root.modeling_files]
        close = nearest(".".join(rest), known)
        raise ConfigError(
            f"there is no module {name}",
            place=place,
            expected=f"a module of {root.root}",
            nearest=f"{top}.{close}" if close else None,
        )
    package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
    release = f"{top}=={root.version}" if root.has("__init__.py") and root.version else f"{top} (no version)"
    return StockModule(name, package, release, root.label(path), root.read(path), reads_unions(root))


def _package(top: str, name: str, place: Place) -> Tree:
    # A dotted name would import the parents; the top-level name alone imports nothing.
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ConfigError(
            f"cannot find the package {top} of {name}",
            place=place,
            expected="an installed package",
            remedy="run with the interpreter that has it, or pass --source PACKAGE_DIR",
        )
    return Tree(Path(folders[0]))


@dataclass(frozen=True)
class Import:
    """One name that a module-level import statement binds."""

    bound: str
    statement: ImportNode
    index: int


class Stock:
    """A stock file with an index of its module-level definitions, constants and imports."""

    def __init__(self, source: Source) -> None:
        self.source = source
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.tree = ast.parse(source.text)
        self._starts = [source.line_start(0), *(found.end() for found in _NEWLINE.finditer(source.data))]
        self._lines = tuple(re.split(r"\r\n|\n|\r", source.text))

    def offset(self, line: int, column: int = 0) -> int:
        """Byte offset of a line (from 1) and a byte column; past the last line, the end of the file."""
        return self._starts[line - 1] + column if line <= len(self._starts) else len(self.source.data)

    def lines(self, first: int, last: int) -> tuple[int, int]:
        """Byte span of whole lines, the last newline included."""
        return self.offset(first), self.offset(last + 1)

    def with_blank_lines(self, first: int, last: int) -> tuple[int, int]:
        """The same with the blank lines below, so that removing them leaves no hole."""
        while last < len(self._lines) - 1 and not self._lines[last].strip():
            last += 1
        return self.lines(first, last)

    def place(self, node: ast.stmt) -> str:
        """The position of a node, for messages."""
        return str(Place(self.source.path, node.lineno))

    @cached_property
    def definitions(self) -> list[DefinitionNode]:
        """Classes and functions of module scope, also those under if, try and with."""
        return [one for one in scope(self.tree.body) if isinstance(one, DefinitionNode)]

    @cached_property
    def imports(self) -> list[Import]:
        """Names bound by import statements at the top level of the module."""
        return [
            Import(alias.asname or alias.name.split(".")[0], node, index)
            for node in self.tree.body
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for index, alias in enumerate(node.names)
        ]

    def one(self, name: str, kind: str, place: Place) -> DefinitionNode:
        """The only module-level class or function of a name; ``kind`` is class, function or definition."""
        kinds = _KINDS[kind]
        named = [node for node in self.definitions if node.name == name]
        found = [node for node in named if isinstance(node, kinds)]
        if len(found) == 1 and len(named) == 1:
            return found[0]
        if named and not found:
            other = "class" if kind == "function" else "function"
            raise ConfigError(
                f"{name} is no {kind}", place=place, expected=f"a {kind}", found=f"a {other} at {self.place(named[0])}"
            )
        if named:
            raise ConfigError(
                f"{name} is defined more than once",
                place=place,
                expected="one definition",
                found=", ".join(self.place(node) for node in named),
            )
        candidates = {node.name for node in self.definitions if isinstance(node, kinds)}
        raise self.missing(f"there is no {kind} {name} in {self.source.path}", name, candidates, place)

    def method(self, owner: ast.ClassDef, name: str, accessor: str, place: Place) -> DefinitionNode | None:
        """The method that a class itself defines, None if it does not; ``accessor`` is "", setter or deleter."""
        named = [node for node in scope(owner.body) if isinstance(node, DefinitionNode) and node.name == name]
        found = [node for node in named if accessor_of(node) == accessor]
        if len(found) > 1:
            raise ConfigError(
                f"{owner.name}.{name} is defined more than once",
                place=place,
                expected="one definition",
                found=", ".join(self.place(node) for node in found),
            )
        return found[0] if found else None

    def no_method(self, owner: ast.ClassDef, name: str, place: Place) -> MissingTargetError:
        """The error about a method that is not there, with the class that has it or the nearest name."""
        own = {node.name for node in scope(owner.body) if isinstance(node, DefinitionNode)}
        base = next((one for one in self._bases(owner) if name in self._methods(one)), None)
        if base is not None:
            return MissingTargetError(
                f"{owner.name} has no method {name} of its own",
                place=place,
                expected=f"a method that {owner.name} defines",
                found=f"{base.name}.{name}, inherited, at {self.place(base)}",
                remedy="override it there, or pass add=True to give this class its own",
            )
        return self.missing(
            f"{owner.name} has no method {name}",
            f"{owner.name}.{name}",
            {f"{owner.name}.{one}" for one in own},
            place,
            f"a method of {owner.name} ({self.place(owner)})",
        )

    def _methods(self, owner: ast.ClassDef) -> set[str]:
        return {node.name for node in scope(owner.body) if isinstance(node, DefinitionNode)}

    def _bases(self, owner: ast.ClassDef) -> Iterator[ast.ClassDef]:
        named = {node.name: node for node in self.definitions if isinstance(node, ast.ClassDef)}
        for base in owner.bases:
            if isinstance(base, ast.Name) and base.id in named and base.id != owner.name:
                yield named[base.id]
                yield from self._bases(named[base.id])

    def missing(
        self, message: str, name: str, candidates: set[str], place: Place, expected: str | None = None
    ) -> MissingTargetError:
        """The error about a name that is not there, with the nearest one that is."""
        close = nearest(name, candidates)
        return MissingTargetError(
            message,
            place=place,
            expected=expected or f"one of {len(candidates)} names of that kind",
            found=name,
            nearest=f"{name}: did you mean {close}?" if close else None,
        )

    def constant(self, name: str, place: Place) -> ast.stmt:
        """The module-level statement that is nothing but an assignment of ``name``."""
        found = [node for node in self.tree.body if assigned(node) == name]
        if len(found) == 1:
            return found[0]
        names = {one.name for one in self.definitions} | {text for node in self.tree.body if (text := assigned(node))}
        raise self.missing(f"there is no definition {name} in {self.source.path}", name, names, place)

    def extent(self, node: ast.stmt) -> tuple[int, int]:
        """First and last line of a definition: decorators and a comment "Copied from" above, comments at its end."""
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
        while first > 1 and self._lines[first - 2].lstrip().startswith("# Copied from"):
            first -= 1
        return first, last_line(self._lines, node)

    @cached_property
    def after_imports(self) -> int:
        """The line after the leading docstring and imports; import blocks under if and try belong to them."""
        last = 0
        for index, node in enumerate(self.tree.body):
            if not (_only_imports(node) or (index == 0 and _is_string(node))):
                break
            last = node.end_lineno or node.lineno
        return last + 1


def scope(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of one scope, those under if, try, with, for and while included."""
    for node in body:
        yield node
        if isinstance(node, DefinitionNode):
            continue
        for name in ("body", "orelse", "handlers", "finalbody"):
            for inner in getattr(node, name, ()):
                yield from scope(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def assigned(node: ast.stmt) -> str | None:
    """The name that a statement does nothing but assign, or None."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    return None


def _only_imports(node: ast.stmt) -> bool:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, (ast.If, ast.Try)):
        inner = [one for one in scope([node]) if not isinstance(one, (ast.If, ast.Try))]
        return all(isinstance(one, (ast.Import, ast.ImportFrom, ast.Pass)) for one in inner)
    return False


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
