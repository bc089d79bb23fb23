"""Which names a piece of code binds and which it mentions: enough to know that moving a call is safe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import libcst as cst

# Fields of LibCST nodes that say how code looks, not what it is.
_LAYOUT = frozenset(
    {
        "lpar",
        "rpar",
        "lbracket",
        "rbracket",
        "lbrace",
        "rbrace",
        "comma",
        "semicolon",
        "dot",
        "colon",
        "first_colon",
        "second_colon",
        "equal",
        "indent",
        "header",
        "footer",
        "leading_lines",
        "trailing_whitespace",
        "lines_after_decorators",
        "leading_whitespace",
        "newline",
        "comment",
    }
)


@cache
def semantic_fields(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    """The fields of a node type that say what the code is; those that only say how it looks are left out."""
    fields = getattr(kind, "__dataclass_fields__", {})
    return tuple(name for name in fields if name not in _LAYOUT and not name.startswith("whitespace"))


def children(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Yield the nodes directly below, in source order, layout left out."""
    for name in semantic_fields(type(node)):
        value = getattr(node, name)
        if isinstance(value, cst.CSTNode):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (one for one in value if isinstance(one, cst.CSTNode))


def walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Yield a node and everything below it."""
    pending = [node]
    while pending:
        one = pending.pop()
        yield one
        pending += reversed(list(children(one)))


def names(node: cst.CSTNode) -> Iterator[str]:
    """Yield every variable name that a node mentions, read or written; attribute and keyword names are none."""
    if isinstance(node, cst.Name):
        yield node.value
    elif isinstance(node, (cst.Attribute, cst.Arg)):
        yield from names(node.value)
    else:
        for child in children(node):
            yield from names(child)


def target_names(target: cst.BaseExpression) -> Iterator[str]:
    """Yield the names that an assignment target binds; ``x.a`` and ``x[0]`` bind none but change ``x``, so yield it."""
    yield from names(target)


def assignment(statement: cst.CSTNode) -> tuple[cst.BaseExpression, cst.BaseExpression] | None:
    """Return (target, value) of a statement that is nothing but one assignment with one target, else None."""
    if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) != 1:
        return None
    small = statement.body[0]
    if isinstance(small, cst.Assign) and len(small.targets) == 1:
        return small.targets[0].target, small.value
    if isinstance(small, cst.AnnAssign) and small.value is not None:
        return small.target, small.value
    return None


def value_of(statement: cst.CSTNode) -> cst.BaseExpression | None:
    """Return the value that a one-target assignment or a return statement computes, else None."""
    assigned = assignment(statement)
    if assigned:
        return assigned[1]
    if isinstance(statement, cst.SimpleStatementLine) and len(statement.body) == 1:
        small = statement.body[0]
        if isinstance(small, cst.Return):
            return small.value
    return None


def binds(node: cst.CSTNode) -> set[str]:
    """Names that executing ``node`` may bind or delete, nested suites included, nested functions' insides excluded."""
    found: set[str] = set()
    for one in _own(node):
        if isinstance(one, (cst.AssignTarget, cst.AnnAssign, cst.AugAssign, cst.NamedExpr, cst.For, cst.CompFor)):
            found.update(target_names(one.target))
        elif isinstance(one, cst.AsName):
            found.update(names(one.name))
        elif isinstance(one, cst.Del):
            found.update(names(one.target))
        elif isinstance(one, (cst.FunctionDef, cst.ClassDef)):
            found.add(one.name.value)
    return found


def _own(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    yield node
    if isinstance(node, (cst.FunctionDef, cst.ClassDef, cst.Lambda)):
        return
    for child in children(node):
        yield from _own(child)


def self_call(node: cst.CSTNode) -> tuple[str, cst.BaseExpression] | None:
    """Return (attribute, argument) of a call ``self.<attribute>(<argument>)`` with one plain argument, else None."""
    if not isinstance(node, cst.Call) or len(node.args) != 1:
        return None
    argument, function = node.args[0], node.func
    if argument.keyword is not None or argument.star or not isinstance(function, cst.Attribute):
        return None
    if isinstance(function.value, cst.Name) and function.value.value == "self":
        return function.attr.value, argument.value
    return None
