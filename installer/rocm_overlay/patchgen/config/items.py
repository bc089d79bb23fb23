"""Take single names out of import statements and out of ``__all__``, as byte spans."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from .stock import ImportNode, Stock

Span = tuple[int, int]
_COMMA = re.compile(rb"[ \t]*,[ \t]*")
_LINE_END = re.compile(rb"(#[^\r\n]*)?(\r\n|\n|\r)")


def drop_aliases(stock: Stock, statement: ImportNode, dropped: set[int]) -> list[Span]:
    """Spans whose removal takes some names, given by position, out of an import statement."""
    if len(dropped) == len(statement.names):
        return [_statement(stock, statement)]
    return _drop(stock, statement.names, dropped)


def drop_from_all(stock: Stock, name: str) -> list[Span]:
    """Spans whose removal takes a name out of every ``__all__`` list of the module."""
    spans: list[Span] = []
    for node in stock.tree.body:
        if isinstance(node, ast.Assign):
            targets: Sequence[ast.expr] = node.targets
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        else:
            continue
        is_all = any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)
        if is_all and isinstance(node.value, (ast.List, ast.Tuple)):
            items = node.value.elts
            found = {index for index, item in enumerate(items) if isinstance(item, ast.Constant) and item.value == name}
            spans += _drop(stock, items, found) if found else []
    return spans


def _span(stock: Stock, node: ast.expr | ast.alias | ast.stmt) -> Span:
    end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
    return stock.offset(node.lineno, node.col_offset), stock.offset(end_line, end_column)


def _statement(stock: Stock, node: ast.stmt) -> Span:
    """The whole lines of a statement, or only itself where it shares them."""
    begin, end = _span(stock, node)
    first, last = stock.lines(node.lineno, node.end_lineno or node.lineno)
    data = stock.source.data
    after = data[end:last].strip()
    if data[first:begin].strip() or (after and not after.startswith(b"#")):
        semicolon = re.match(rb"[ \t]*;[ \t]*", data[end:last])
        return begin, end + (semicolon.end() if semicolon else 0)
    return first, last


def _drop(stock: Stock, items: Sequence[ast.expr | ast.alias], dropped: set[int]) -> list[Span]:
    """Remove list items with their comma; without a trailing comma, the last ones give up the comma before them."""
    kept = [index for index in range(len(items)) if index not in dropped]
    last_kept = kept[-1] if kept else -1
    if _COMMA.match(stock.source.data, _span(stock, items[-1])[1]):
        last_kept = len(items)
    spans = [_with_comma(stock, _span(stock, items[index])) for index in sorted(dropped) if index < last_kept]
    tail = [index for index in sorted(dropped) if index > last_kept]
    if tail:
        start = _span(stock, items[last_kept])[1] if kept else _span(stock, items[0])[0]
        spans.append((start, _span(stock, items[tail[-1]])[1]))
    return spans


def _with_comma(stock: Stock, span: Span) -> Span:
    """From an item to the next one: its comma, and its line where nothing else is on it."""
    data = stock.source.data
    found = _COMMA.match(data, span[1])
    end = found.end() if found else span[1]
    begin = stock.source.line_start(span[0])
    newline = _LINE_END.match(data, end)
    if newline and not data[begin : span[0]].strip():
        return begin, newline.end()
    return span[0], end
