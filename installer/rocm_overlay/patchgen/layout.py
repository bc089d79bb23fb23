"""How our lines look: stock indentation, the file's own line ending, at most 119 columns."""

from __future__ import annotations

import libcst as cst

from .edits import Edit
from .source import Anchor, Function, Source

MAX_COLUMNS = 119
_STEP = "    "


def test(site: str) -> str:
    """The condition under which a site of ours acts; one attribute read when the package is there."""
    return f"_amd and _amd.on.{site}"


def insertion(recipe: str, function: Function, anchor: Anchor, lines: list[str]) -> Edit:
    """Insert whole lines at an anchor, indented like the statement that follows; a call that is too long is broken."""
    room = MAX_COLUMNS - len(anchor.indent)
    text = "".join(f"{anchor.indent}{part}{anchor.newline}" for line in lines for part in _wrapped(line, room))
    return Edit(anchor.offset, anchor.offset, text.encode("ascii"), recipe, function.qualname)


def early_return(recipe: str, source: Source, function: Function, call: str) -> list[Edit]:
    """Guard put before the first statement after the docstring: ``if ...: return <call>``."""
    anchor = source.before(function.body[0])
    if anchor is None:
        return []
    return [insertion(recipe, function, anchor, [f"if {test(recipe)}:", f"{_STEP}return {call}"])]


def conditional(
    recipe: str,
    source: Source,
    function: Function,
    node: cst.BaseExpression,
    call: str,
    ahead: str = "",
    unless: str = "",
) -> Edit:
    """Replace an expression by ``<call> if <test> else <the expression, verbatim>``, in one line where it fits.

    ``ahead`` is what another recipe inserts in front of the expression, ``unless`` a local that keeps it as it is.
    """
    condition = f"if {test(recipe)}" + (f" and not {unless}" if unless else "")
    start, end = source.span(node)
    stock = source.code(node)
    begin = source.line_start(start)
    before = source.data[begin:start].decode("utf-8") + ahead
    after = source.data[end:].splitlines()[:1] if source.data[end : end + 1] not in (b"\r", b"\n") else []
    tail = after[0].decode("utf-8") if after else ""
    one_line = f"{call} {condition} else {stock}"
    one_line = f"({one_line})" if tail.startswith(".") else one_line  # a method is called on the value
    if "\n" not in one_line and len(before) + len(one_line) + len(tail) <= MAX_COLUMNS:
        text = one_line
    else:
        newline = source.newline_after(end)
        indent = before[: len(before) - len(before.lstrip())]
        text = newline.join(choice(before, call, condition, stock, indent, tail))
    return Edit(start, end, text.encode("utf-8"), recipe, function.qualname)


def unless(
    recipe: str, source: Source, function: Function, node: cst.BaseExpression, result: str, otherwise: str
) -> list[Edit]:
    """Keep an expression where the local ``result`` is None, and let it be ``otherwise`` where it is not."""
    start, end = source.span(node)
    begin = source.line_start(start)
    condition = f"if {result} is None else {otherwise}"
    line = source.data[begin:end].decode("utf-8")
    if "\n" not in line and len(line) + 1 + len(condition) <= MAX_COLUMNS:
        return [Edit(end, end, f" {condition}".encode(), recipe, function.qualname)]
    indent = line[: len(line) - len(line.lstrip())]
    text = f"({source.code(node)}{source.newline_after(end)}{indent}{_STEP}{condition})"
    return [Edit(start, end, text.encode(), recipe, function.qualname)]


def choice(before: str, value: str, condition: str, otherwise: str, indent: str, tail: str = "") -> list[str]:
    """The lines of ``(<value> <condition> else <otherwise>)``: two where they fit, else one for each part.

    ``before`` and ``tail`` are what stands on the lines beside it.
    """
    first, second = f"({value} {condition}", f"{indent}{_STEP}else {otherwise})"
    if "\n" not in otherwise and max(len(before + first), len(second + tail)) <= MAX_COLUMNS:
        return [first, second]
    return ["(", *(f"{indent}{_STEP}{part}" for part in (value, condition, f"else {otherwise}")), f"{indent})"]


def _wrapped(line: str, width: int) -> list[str]:
    """A line that ends in a call, or a condition that does, with the arguments on their own line if it were too long.

    A site is never given up for the width of a line: names are upstream's, and may grow.
    """
    head, opened, words = line.partition("(")
    end = "):" if words.endswith("):") else ")"
    if len(line) <= width or not opened or not words.endswith(end):
        return [line]
    own = " " * (len(line) - len(line.lstrip()))
    return [f"{head}(", f"{own}{_STEP}{words[: -len(end)]}", f"{own}{end}"]
