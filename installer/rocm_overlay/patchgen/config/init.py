"""``modify_init``: keep the stock ``__init__`` under a private name and put a wrapper after it.

The private name begins with two underscores, so Python gives each class its own: a modified subclass of a modified
class calls its own stock ``__init__``.
"""

from __future__ import annotations

import ast
import re

from ...errors import Place
from .patches import ConfigError, ModifyInit
from .stock import Stock

ORIGINAL = "__original_init"


def modify_init(
    stock: Stock, node: ast.FunctionDef, text: str, new: ast.FunctionDef, patch: ModifyInit
) -> tuple[tuple[int, int], str]:
    """Return the span of the stock method's name, and the text of the wrapper in column 0."""
    begin = stock.offset(node.lineno, node.col_offset)
    found = re.compile(rb"def[ \t]+(__init__)").match(stock.source.data, begin)
    if found is None or node.decorator_list:
        raise ConfigError(f"{patch.target}.__init__ is not a plain method", place=patch.place, found=stock.place(node))
    return found.span(1), _wrapper(text, new, patch)


def _wrapper(text: str, new: ast.FunctionDef, patch: ModifyInit) -> str:
    place = patch.definition.place
    parameters = new.args.args
    if len(parameters) < 2 or new.args.posonlyargs:
        raise ConfigError(
            "modify_init needs the stock __init__ and self as its first parameters",
            place=place,
            expected="def modified(original_init, self, ...)",
            found=f"({ast.unparse(new.args)})",
        )
    original = parameters[0].arg
    if not any(isinstance(node, ast.Name) and node.id == original for node in ast.walk(new)):
        raise ConfigError(
            f"{original} is never called, so the stock __init__ would not run",
            place=place,
            remedy=f'call it, or use override_method("{patch.target}.__init__")',
        )
    lines = text.splitlines(keepends=True)
    first = _first_statement(new, place)
    indent = lines[first.lineno - 1][: first.col_offset]
    at = first.lineno
    while lines[at - 2].lstrip().startswith("#"):
        at -= 1
    lines.insert(at - 1, f"{indent}{original} = __class__.{ORIGINAL}\n")
    return _without_first_parameter(lines, parameters)


def _first_statement(new: ast.FunctionDef, place: Place) -> ast.stmt:
    body = new.body
    documented = isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)
    first = body[1 if documented and len(body) > 1 else 0]
    if first.lineno <= _header_end(new):
        raise ConfigError("write the body of this function on lines of its own", place=place)
    return first


def _header_end(new: ast.FunctionDef) -> int:
    ends = [one.end_lineno or 0 for one in ast.walk(new.args) if isinstance(one, (ast.arg, ast.expr))]
    return max([new.lineno, *ends])


def _without_first_parameter(lines: list[str], parameters: list[ast.arg]) -> str:
    """Cut from the first parameter to the second; columns of ``ast`` count UTF-8 bytes."""
    first, second = parameters[0], parameters[1]
    data = [line.encode("utf-8") for line in lines]
    head = data[first.lineno - 1][: first.col_offset]
    tail = data[second.lineno - 1][second.col_offset :]
    return b"".join([*data[: first.lineno - 1], head + tail, *data[second.lineno :]]).decode("utf-8")
