"""Patterns written as Python, with holes: ``__x.pow(2).mean(-1, keepdim=True)``.

A name that begins with two underscores is a hole. It takes any expression (as an attribute name, any name), and the
same hole must take the same code everywhere in one pattern. Whitespace, comments, redundant parentheses and trailing
commas do not count; everything else must be equal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import libcst as cst

from .flow import semantic_fields

Bindings = Mapping[str, cst.CSTNode]


class Pattern:
    """One or more statements with holes."""

    def __init__(self, code: str) -> None:
        self.statements: tuple[cst.CSTNode, ...] = tuple(cst.parse_module(textwrap.dedent(code).strip() + "\n").body)

    def match(self, statements: Sequence[cst.CSTNode]) -> Bindings | None:
        """Return what the holes took when the pattern equals the whole sequence of statements, else None."""
        found: dict[str, cst.CSTNode] = {}
        return found if _unify(self.statements, tuple(statements), found) else None


class Expression:
    """One expression with holes."""

    def __init__(self, code: str) -> None:
        self.node = cst.parse_expression(code)

    def match(self, node: cst.CSTNode) -> Bindings | None:
        """Return what the holes took when the pattern equals the expression, else None."""
        found: dict[str, cst.CSTNode] = {}
        return found if _unify(self.node, node, found) else None


def first_match(patterns: Iterable[Pattern], statements: Sequence[cst.CSTNode]) -> Bindings | None:
    """Return the bindings of the first pattern that equals the statements, else None."""
    for pattern in patterns:
        found = pattern.match(statements)
        if found is not None:
            return found
    return None


def same(first: object, second: object) -> bool:
    """Say whether two nodes are the same code, layout aside."""
    return _unify(first, second, None)


def _unify(pattern: object, node: object, found: dict[str, cst.CSTNode] | None) -> bool:
    if found is not None and isinstance(pattern, cst.Name) and pattern.value.startswith("__"):
        return _fill(pattern.value, node, found)
    if isinstance(pattern, cst.CSTNode):
        if type(pattern) is not type(node):
            return False
        return all(
            _unify(getattr(pattern, name), getattr(node, name), found) for name in semantic_fields(type(pattern))
        )
    if isinstance(pattern, (list, tuple)):
        if not isinstance(node, (list, tuple)) or len(pattern) != len(node):
            return False
        return all(_unify(one, other, found) for one, other in zip(pattern, node, strict=True))
    return pattern == node


def _fill(hole: str, node: object, found: dict[str, cst.CSTNode]) -> bool:
    if not isinstance(node, cst.BaseExpression):
        return False
    if hole in found:
        return same(found[hole], node)
    found[hole] = node
    return True
