"""The little language of the operator lists: integer arithmetic and comparisons over named dimensions."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@lru_cache(maxsize=4096)
def _parse(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def evaluate(text: str, names: Mapping[str, Any]) -> Any:
    """Return the value of an expression such as ``c * 2`` or ``d % n == 0``.

    Raises:
        KeyError: a name is unknown here (the operator does not apply to this kind of value).
        ValueError: the text is no such expression.
    """
    return _value(_parse(text), names)


def evaluate_shape(text: str, before: tuple[int, ...], names: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape that a rule gives. ``...`` stands for as many dimensions of ``before`` as are missing."""
    node = _parse(text)
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    shape: list[int] = []
    for index, part in enumerate(parts):
        if isinstance(part, ast.Constant) and part.value is Ellipsis:
            count = len(before) - (len(parts) - 1)
            shape += before[index : index + count]
        else:
            shape.append(int(_value(part, names)))
    return tuple(shape)


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, names), _value(node.right, names))
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPERATORS:
        return _OPERATORS[type(node.ops[0])](_value(node.left, names), _value(node.comparators[0], names))
    raise ValueError(f"not an expression of the operator lists: {ast.unparse(node)}")
