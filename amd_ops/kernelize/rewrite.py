"""The source of a forward: read, searched for places that a kernel can take, edited and compiled again."""

from __future__ import annotations
import __future__

import ast
import copy
import hashlib
import inspect
import linecache
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from .forwards import unless_replaced

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


# Names that say q, k, v: q_proj, query, to_q, wq, q_lin. Matching the three calls alone would also take experts and
# gates.
_FAMILY = re.compile(r"(?:to_)?w?([qkv])(?:_?(?:proj|lin|linear|layer))?\Z|(query|key|value)(?:_?(?:proj|layer))?\Z")
_SDPA = {
    "F.scaled_dot_product_attention",
    "nn.functional.scaled_dot_product_attention",
    "torch.nn.functional.scaled_dot_product_attention",
}
_SDPA_ARGUMENTS = {"query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"}


@dataclass(frozen=True)
class Edit:
    """A change that was made to a forward's tree: the compute, and what it stands for (names or a function)."""

    compute: str
    what: Any


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for item in ast.walk(node):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(item, field, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield block


def _role(name: str) -> str:
    found = _FAMILY.match(name)
    return (found.group(1) or found.group(2)[0]) if found else ""


def _projections(statement: ast.stmt, owner: str) -> Iterator[ast.Call]:
    """Yield the calls ``self.name(h)`` that a plain assignment makes on every path."""
    if isinstance(statement, ast.Assign) and not any(
        isinstance(item, ast.IfExp | ast.BoolOp | ast.Lambda | ast.ListComp | ast.NamedExpr)
        for item in ast.walk(statement.value)
    ):
        for call in calls(statement.value):
            if (
                is_self_attribute(call.func, owner)
                and len(call.args) == 1
                and not call.keywords
                and isinstance(call.args[0], ast.Name)
            ):
                yield call


def edit_qkv(node: ast.FunctionDef) -> Edit | None:
    """Replace ``self.q(h)``, ``self.k(h)``, ``self.v(h)`` in one block by one call ``_amd_qkv(self, h)`` before the
    first.

    Declined (None) when ``h`` is assigned between them or one of the three does not run on every path.
    """
    owner = node.args.args[0].arg
    for block in _blocks(node):
        found: dict[str, tuple[int, ast.Call]] = {}
        for index, statement in enumerate(block):
            for call in _projections(statement, owner):
                assert isinstance(call.func, ast.Attribute)
                role = _role(call.func.attr)
                if role and role not in found:
                    found[role] = (index, call)
        if set(found) == {"q", "k", "v"} and _same_input(block, list(found.values())):
            return _replace_projections(block, owner, found)
    return None


def _same_input(block: list[ast.stmt], found: list[tuple[int, ast.Call]]) -> bool:
    names = {call.args[0].id for _, call in found if isinstance(call.args[0], ast.Name)}
    first, last = min(i for i, _ in found), max(i for i, _ in found)
    between = [name for statement in block[first:last] for name in sorted_stores(statement)]
    return len(names) == 1 and not names & set(between)


def _replace_projections(block: list[ast.stmt], owner: str, found: dict[str, tuple[int, ast.Call]]) -> Edit:
    first, last = min(i for i, _ in found.values()), max(i for i, _ in found.values())
    names, argument = [], ""
    for role in "qkv":
        call = found[role][1]
        assert isinstance(call.func, ast.Attribute)
        assert isinstance(call.args[0], ast.Name)
        names.append(call.func.attr)
        argument = call.args[0].id
        for statement in block:
            _substitute(statement, call, ast.Name(f"_amd_{role}", ast.Load()))
    before = ast.parse(f"_amd_q, _amd_k, _amd_v = _amd_qkv({owner}, {argument})").body
    # The plain results would otherwise live as long as the whole forward.
    after = ast.parse("del _amd_q, _amd_k, _amd_v").body
    block[last + 1 : last + 1] = after
    block[first:first] = before
    return Edit("qkv", tuple(names))


def _substitute(statement: ast.stmt, old: ast.AST, new: ast.expr) -> None:
    class Swap(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return new if node is old else self.generic_visit(node)

    Swap().visit(statement)


def edit_rope(node: ast.FunctionDef, resolve: Callable[[str], Any], is_rope: Callable[[Any], Any]) -> Edit | None:
    """Replace the call of a rotary function by ``_amd_rope(...)``; ``is_rope(function)`` returns what proves it, or
    None.
    """
    local = set(sorted_stores(node))
    for call in calls(node):
        name = dotted(call.func)
        if (
            not name
            or name.split(".")[0] in local
            or len(call.args) < 4
            or any(isinstance(a, ast.Starred) for a in call.args)
        ):
            continue
        function = resolve(name)
        proof = is_rope(function) if function is not None else None
        if proof is not None:
            now = ast.unparse(call.func)
            call.func = ast.parse(f"(_amd_rope if _amd_same({now}) else {now})", mode="eval").body
            return Edit("rope", (function, proof))
    return None


def begin_with_home(node: ast.FunctionDef) -> None:
    """Let a forward begin with the question whether its class's forward was replaced since; that one runs then."""
    given = node.args
    words = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    words += [f"*{given.vararg.arg}"] if given.vararg is not None else []
    words += [f"{argument.arg}={argument.arg}" for argument in given.kwonlyargs]
    words += [f"**{given.kwarg.arg}"] if given.kwarg is not None else []
    node.body[0:0] = ast.parse("\n".join(unless_replaced(", ".join(words)))).body


def edit_attention(node: ast.FunctionDef) -> Edit | None:
    """Route the attention call: transformers' ``attention_interface(self, ...)`` or F.scaled_dot_product_attention."""
    owner = node.args.args[0].arg
    for call in calls(node):
        name = dotted(call.func)
        if (
            name == "attention_interface"
            and call.args
            and isinstance(call.args[0], ast.Name)
            and call.args[0].id == owner
        ):
            call.func = ast.parse(f"_amd_route({owner}, attention_interface)", mode="eval").body
            return Edit("attention", "interface")
        plain = 3 <= len(call.args) <= 6 and not any(isinstance(a, ast.Starred) for a in call.args)
        if name in _SDPA and plain and {k.arg for k in call.keywords} <= _SDPA_ARGUMENTS:
            original = call.func
            call.func = ast.Name("_amd_sdpa", ast.Load())
            return Edit("attention", dotted(original))
    return None
