"""From a function to its syntax tree and back: reading, normalising and recompiling a forward."""

from __future__ import annotations
import __future__

import ast
import copy
import hashlib
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

_serial = count()
_ANNOTATIONS = __future__.annotations.compiler_flag


class Unreadable(Exception):
    """The source of a function cannot be had, or cannot be recompiled outside its class. The text is the reason."""


def parse(function: Callable[..., Any]) -> ast.FunctionDef:
    """Return the syntax tree of a function as it is written, decorators included. Raises Unreadable."""
    inner = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inner)))
    except (OSError, TypeError, SyntaxError) as error:
        raise Unreadable(f"the source of {function.__qualname__} is not available ({type(error).__name__})") from error
    node = tree.body[0] if tree.body else None
    if not isinstance(node, ast.FunctionDef):
        raise Unreadable(f"{function.__qualname__} is not written as a plain function")
    return node


def body(node: ast.FunctionDef) -> list[ast.stmt]:
    """Return the statements of a function without its docstring."""
    statements = node.body
    first = statements[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return statements[1:]
    return statements


def fingerprint(node: ast.FunctionDef) -> str:
    """Hash a function's meaning: no docstring, annotations, decorators, positions or names of locals."""
    node = copy.deepcopy(node)
    node.body = body(node) or [ast.Pass()]
    node.decorator_list, node.returns, node.name = [], None, "f"
    names: dict[str, str] = {}
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    for argument in arguments:
        argument.annotation = None
        names[argument.arg] = argument.arg = f"a{len(names)}"
    for name in sorted_stores(node):
        names.setdefault(name, f"v{len(names)}")
    for item in ast.walk(node):
        if isinstance(item, ast.Name):
            item.id = names.get(item.id, item.id)
    return hashlib.sha256(ast.dump(node).encode()).hexdigest()[:16]


def sorted_stores(node: ast.AST) -> list[str]:
    """Return the local names a function assigns, in order of first appearance."""
    found = [n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return list(dict.fromkeys(n.id for n in sorted(found, key=lambda n: (n.lineno, n.col_offset))))


def is_self_attribute(node: ast.AST, owner: str) -> bool:
    """Return True for ``self.name``."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == owner


def calls(node: ast.AST) -> Iterator[ast.Call]:
    """Yield every call in a tree."""
    yield from (item for item in ast.walk(node) if isinstance(item, ast.Call))


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for a chain of names, '' for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


@dataclass
class _Local:
    """One assignment of a local: its value, and how often it was read before the next one."""

    value: ast.expr
    reads: int = 0


def single_expression(node: ast.FunctionDef) -> ast.expr | None:
    """Return what a straight-line function returns, with every assigned value put where it is read.

    None when the function has other statements than simple assignments and one return, assigns a parameter, or reads an
    assigned value more or less than once (putting it there would compute it twice, or lose it).
    """
    known: dict[str, _Local] = {}
    parameters = {a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
    for statement in body(node):
        if isinstance(statement, ast.Return) and statement.value is not None:
            result = _inline(statement.value, known)
            once = all(local.reads == 1 for local in known.values())
            return result if once and statement is node.body[-1] else None
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            return None
        target, value = statement.targets[0], statement.value
        pairs: list[tuple[ast.expr, ast.expr]] = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            pairs = list(zip(target.elts, value.elts, strict=True))
        assigned = [(name, _inline(expression, known)) for name, expression in pairs]
        for name, expression in assigned:
            if not isinstance(name, ast.Name) or name.id in parameters:
                return None
            if name.id in known and known[name.id].reads != 1:
                return None
            known[name.id] = _Local(expression)
    return None


def _inline(expression: ast.expr, known: Mapping[str, _Local]) -> ast.expr:
    class Inline(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            if node.id not in known:
                return node
            known[node.id].reads += 1
            return known[node.id].value

    changed: ast.expr = Inline().visit(copy.deepcopy(expression))
    return changed


def recompile(function: Callable[..., Any], node: ast.FunctionDef, names: Mapping[str, Any]) -> Callable[..., Any]:
    """Compile a changed tree of ``function`` with its globals, closure, defaults and decorators, plus ``names``.
    Raises Unreadable.

    Defaults and decorators are evaluated again in the function's globals.
    """
    inner = inspect.unwrap(function)
    for item in ast.walk(node):
        for text in (getattr(item, "attr", ""), getattr(item, "id", "")):
            if isinstance(text, str) and text.startswith("__") and not text.endswith("__"):
                raise Unreadable(f"{function.__qualname__} uses the private name {text}")
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    values = {**{name: cell.cell_contents for name, cell in cells.items()}, **names}
    factory = ast.FunctionDef(
        name="_factory",
        args=ast.arguments(
            posonlyargs=[], args=[ast.arg(arg=n) for n in values], kwonlyargs=[], kw_defaults=[], defaults=[]
        ),
        body=[node, ast.Return(ast.Name(node.name, ast.Load()))],
        decorator_list=[],
    )
    if hasattr(factory, "type_params"):
        factory.type_params = []
    # Through text, so that tracebacks and torch.compile see the lines that run.
    text = ast.unparse(ast.fix_missing_locations(ast.Module([factory], [])))
    name = f"<amd_ops rewrite {next(_serial)} of {function.__module__}.{function.__qualname__}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    local: dict[str, Any] = {}
    future = inner.__code__.co_flags & _ANNOTATIONS
    exec(compile(text, name, "exec", flags=future, dont_inherit=True), inner.__globals__, local)
    made: Callable[..., Any] = local["_factory"](**values)
    for part in (made, inspect.unwrap(made)):
        part.__qualname__, part.__module__ = function.__qualname__, function.__module__
    return made
