"""Edits inside a forward: three projections of one input, the rotary embedding, the attention call. One edit is one
compute.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import source
from .forwards import unless_replaced

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
        for call in source.calls(statement.value):
            if (
                source.is_self_attribute(call.func, owner)
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
    between = [name for statement in block[first:last] for name in source.sorted_stores(statement)]
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
    local = set(source.sorted_stores(node))
    for call in source.calls(node):
        name = source.dotted(call.func)
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
    for call in source.calls(node):
        name = source.dotted(call.func)
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
            return Edit("attention", source.dotted(original))
    return None
