"""A program as text: taken out of an answer, checked for form and policy, named after what is in it."""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from .sandbox import policy

_REQUIRED = ("get_inputs", "get_init_inputs")
MAX_BYTES = 64 * 1024


class Rejected(Exception):
    """A program that is not even run. ``category`` is one of the error categories of the statistics."""

    def __init__(self, category: str, message: str) -> None:
        super().__init__(f"{category}: {message}")
        self.category, self.message = category, message


@dataclass(frozen=True)
class Program:
    """A program of good form. ``shape`` is a digest of its normalised tree: of its text without names and comments."""

    name: str
    source: str
    shape: str

    def renamed(self, name: str) -> Program:
        """Return the program with its class called something else."""
        return Program(name, re.sub(rf"\b{re.escape(self.name)}\b", name, self.source), self.shape)


def extract(text: str) -> str:
    """Return the code of an answer: its longest fenced block, or all of it where there is none.

    Raises:
        Rejected: the answer is empty, was cut off, or is far too long.
    """
    blocks, open_block = _blocks(text)
    code = max(blocks, key=len) if blocks else text
    if len(open_block) > len(code) or (open_block and not blocks):
        raise Rejected("syntax", "the code block does not end: the answer was cut off")
    if not code.strip():
        raise Rejected("empty", "the answer holds no code")
    if len(code) > MAX_BYTES:
        raise Rejected("syntax", f"the code has {len(code)} characters, more than {MAX_BYTES}")
    return code.strip("\n") + "\n"


def _blocks(text: str) -> tuple[list[str], str]:
    """Return the fenced blocks of an answer, and what stands in one that is never closed."""
    blocks: list[str] = []
    inside: list[str] | None = None
    for line in text.splitlines(keepends=True):
        if not line.lstrip().startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside = []
        else:
            blocks.append("".join(inside))
            inside = None
    return blocks, "".join(inside or ())


def read_source(file: Path) -> str:
    """Return a program's text.

    Raises:
        Rejected: it is not UTF-8, or far too long.
    """
    data = file.read_bytes()
    if len(data) > MAX_BYTES:
        raise Rejected("syntax", f"the file has {len(data)} bytes, more than {MAX_BYTES}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected("syntax", f"not UTF-8 (byte {error.start})") from error


def examine(source: str, name: str | None = None) -> Program:
    """Check the form of a program and return it. With ``name``, its class must be called that.

    Raises:
        Rejected: syntax, policy or structure.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Rejected("syntax", f"{type(error).__name__}: {error}") from error
    found = policy.violations(tree)
    if found:
        raise Rejected("policy", "; ".join(found[:5]))
    main = _main_class(tree, name)
    return Program(main.name, source, _digest(_normalised(tree)))


def _main_class(tree: ast.Module, name: str | None) -> ast.ClassDef:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    missing = [one for one in _REQUIRED if one not in functions]
    if missing:
        raise Rejected("structure", f"there is no function {' and no function '.join(missing)}")
    wanted = [node for node in classes if (node.name == name if name else node.name.startswith("SynthModel"))]
    if not wanted:
        others = ", ".join(node.name for node in classes) or "none"
        raise Rejected("structure", f"there is no class {name or 'SynthModel_...'} (classes: {others})")
    methods = {node.name for node in wanted[-1].body if isinstance(node, ast.FunctionDef)}
    if "forward" not in methods:
        raise Rejected("structure", f"class {wanted[-1].name} has no forward")
    return wanted[-1]


class _Renamer(ast.NodeTransformer):
    """Give every name of the program's own a number, in order of appearance; drop texts that only explain."""

    def __init__(self, known: set[str]) -> None:
        self.known = known
        self.numbers: dict[str, str] = {}

    def _number(self, name: str) -> str:
        return name if name in self.known else self.numbers.setdefault(name, f"n{len(self.numbers)}")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self._number(node.id), node.ctx)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg(self._number(node.arg))

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        own = isinstance(node.value, ast.Name) and self.numbers.get("self") == node.value.id
        return ast.Attribute(node.value, self._number(f"self.{node.attr}") if own else node.attr, node.ctx)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = self._number(node.name)
        return self._body(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if not node.name.startswith("__") and node.name not in ("forward", *_REQUIRED):
            node.name = self._number(node.name)
        node.returns = None
        return self._body(node)

    def _body(self, node: ast.AST) -> ast.AST:
        assert isinstance(node, ast.FunctionDef | ast.ClassDef)
        node.body = [one for one in node.body if not _is_text(one)] or [ast.Pass()]
        self.generic_visit(node)
        return node


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _normalised(tree: ast.Module) -> str:
    copy = ast.parse(ast.unparse(tree))
    copy.body = [one for one in copy.body if not isinstance(one, ast.Import | ast.ImportFrom) and not _is_text(one)]
    return ast.dump(_Renamer({"torch", "nn", "F", "math", "super", "range", "len"}).visit(copy))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:24]
