"""A program as text: taken out of an answer, checked for form and policy, reduced to what makes it a duplicate."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from . import kernelbench
from .sandbox import policy

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
_REQUIRED = ("get_inputs", "get_init_inputs")
MAX_BYTES = 64 * 1024


class Rejected(Exception):
    """A program that is not even run. ``category`` is one of the error categories of the statistics."""

    def __init__(self, category: str, message: str) -> None:
        super().__init__(f"{category}: {message}")
        self.category, self.message = category, message


@dataclass(frozen=True)
class Program:
    """A program of good form. ``signature`` and ``shape`` are digests: of its operators, of its normalised tree."""

    name: str
    source: str
    operators: tuple[str, ...]
    signature: str
    shape: str


def extract(text: str) -> str:
    """Return the code of an answer: its longest fenced block, or all of it where there is none.

    Raises:
        Rejected: the answer is empty or far too long.
    """
    blocks = _FENCE.findall(text)
    code = max(blocks, key=len) if blocks else text
    if not code.strip():
        raise Rejected("empty", "the answer holds no code")
    if len(code) > MAX_BYTES:
        raise Rejected("syntax", f"the code has {len(code)} characters, more than {MAX_BYTES}")
    return code.strip("\n") + "\n"


def examine(source: str, name: str | None = None) -> Program:
    """Check the form of a program and return it. With ``name``, its class must be called that.

    Raises:
        Rejected: syntax, policy, structure, or quality (too near to KernelBench level 2).
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Rejected("syntax", f"{type(error).__name__}: {error}") from error
    found = policy.violations(tree)
    if found:
        raise Rejected("policy", "; ".join(found[:5]))
    main = _main_class(tree, name)
    problem = kernelbench.resembles_level_2(tree, main)
    if problem:
        raise Rejected("quality", problem)
    operators = tuple(_operators(tree))
    signature = _digest(" ".join(sorted(operators)))
    return Program(main.name, source, operators, signature, _digest(_normalised(tree)))


def _main_class(tree: ast.Module, name: str | None) -> ast.ClassDef:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    missing = [one for one in _REQUIRED if one not in functions]
    if missing:
        raise Rejected("structure", f"there is no function {' and no function '.join(missing)}")
    wanted = [node for node in classes if (node.name == name if name else node.name.startswith("SynthModel"))]
    if not wanted:
        raise Rejected("structure", f"there is no class {name or 'SynthModel_...'}")
    methods = {node.name for node in wanted[-1].body if isinstance(node, ast.FunctionDef)}
    if "forward" not in methods:
        raise Rejected("structure", f"class {wanted[-1].name} has no forward")
    return wanted[-1]


def _operators(tree: ast.Module) -> Iterator[str]:
    """Yield the torch operators of a program in order: calls of torch, nn and F by name, methods, arithmetic."""
    for top in tree.body:
        if isinstance(top, ast.FunctionDef) and top.name in _REQUIRED:
            continue
        for node in ast.walk(top):
            if isinstance(node, ast.Call):
                name = call_name(node)
                if name:
                    yield name
            elif isinstance(node, ast.BinOp):
                yield type(node.op).__name__


def call_name(node: ast.Call) -> str:
    """``nn.Linear``, ``F.silu``, ``torch.cat``, or ``.mean`` for a method of some value; "" for anything else."""
    parts: list[str] = []
    function: ast.expr = node.func
    while isinstance(function, ast.Attribute):
        parts.append(function.attr)
        function = function.value
    root = function.id if isinstance(function, ast.Name) else ""
    dotted = ".".join([root, *reversed(parts)])
    for long, short in (("torch.nn.functional.", "F."), ("nn.functional.", "F."), ("torch.nn.", "nn.")):
        if dotted.startswith(long):
            dotted = short + dotted.removeprefix(long)
    if dotted.startswith(("torch.", "nn.", "F.")):
        return "" if dotted in ("nn.Module", "nn.Parameter") else dotted
    return f".{parts[0]}" if parts and root not in ("self", "super") and parts[0] != "__init__" else ""


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
