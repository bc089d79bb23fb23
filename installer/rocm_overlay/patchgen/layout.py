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
    """Insert whole lines at an anchor, indented like the statement that follows."""
    text = "".join(f"{anchor.indent}{line}{anchor.newline}" for line in lines)
    return Edit(anchor.offset, anchor.offset, text.encode("ascii"), recipe, function.qualname)


def early_return(recipe: str, source: Source, function: Function, call: str) -> list[Edit]:
    """Guard put before the first statement after the docstring: ``if ...: return <call>``."""
    anchor = source.before(function.body[0])
    if anchor is None:
        return []
    return [insertion(recipe, function, anchor, [f"if {test(recipe)}:", f"{_STEP}return {call}"])]


def conditional(recipe: str, source: Source, function: Function, node: cst.BaseExpression, call: str) -> Edit:
    """Replace an expression by ``<call> if <test> else <the expression, verbatim>``, in one line where it fits."""
    start, end = source.span(node)
    stock = source.code(node)
    begin = source.line_start(start)
    before = source.data[begin:start].decode("utf-8")
    after = source.data[end:].splitlines()[:1] if source.data[end : end + 1] not in (b"\r", b"\n") else []
    tail = after[0].decode("utf-8") if after else ""
    one_line = f"{call} if {test(recipe)} else {stock}"
    one_line = f"({one_line})" if tail.startswith(".") else one_line  # a method is called on the value
    if "\n" not in one_line and len(before) + len(one_line) + len(tail) <= MAX_COLUMNS:
        text = one_line
    else:
        newline = source.newline_after(end)
        indent = before[: len(before) - len(before.lstrip())]
        text = newline.join(choice(before, call, f"if {test(recipe)}", stock, indent, tail))
    return Edit(start, end, text.encode("utf-8"), recipe, function.qualname)


def choice(before: str, value: str, condition: str, otherwise: str, indent: str, tail: str = "") -> list[str]:
    """The lines of ``(<value> <condition> else <otherwise>)``: two where they fit, else one for each part.

    ``before`` and ``tail`` are what stands on the lines beside it.
    """
    first, second = f"({value} {condition}", f"{indent}{_STEP}else {otherwise})"
    if "\n" not in otherwise and max(len(before + first), len(second + tail)) <= MAX_COLUMNS:
        return [first, second]
    return ["(", *(f"{indent}{_STEP}{part}" for part in (value, condition, f"else {otherwise}")), f"{indent})"]


def too_wide(edit: Edit) -> bool:
    """Say whether a line that we wrote passes the column limit."""
    lines = edit.text.decode("utf-8").splitlines()
    # The first line of a replacement continues a stock line; `conditional` has measured it.
    return any(len(line) > MAX_COLUMNS for line in (lines if edit.start == edit.end else lines[1:]))
