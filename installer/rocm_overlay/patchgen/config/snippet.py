"""Shift the text of one definition and rename identifiers in it; strings and comments stay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import libcst as cst

from ...errors import Place, SourceError
from ..edits import Edit, splice
from ..source import Source, is_docstring
from .patches import ConfigError, Definition


def dedent(text: str, columns: int, place: Place) -> str:
    """Take ``columns`` characters off every line that does not begin inside a string."""
    if not columns:
        return text
    wrapped = "if True:\n" + text
    inside = _string_lines(_parse(wrapped, place))
    lines = wrapped.split("\n")[1:]
    return "\n".join(
        line if number in inside or line[:columns].strip() else line[columns:] for number, line in enumerate(lines, 2)
    )


def indent(text: str, prefix: str, place: Place) -> str:
    """Put ``prefix`` before every line that has code; lines that begin inside a string stay, docstrings move along."""
    if not prefix:
        return text
    inside = _string_lines(_parse(text, place))
    lines = text.split("\n")
    return "\n".join(
        prefix + line if line.strip() and number not in inside else line for number, line in enumerate(lines, 1)
    )


def rename(definition: Definition, new_name: str, renamed: Mapping[str, str], name_map: Mapping[str, str]) -> str:
    """Return the definition's text under its new name.

    Args:
        definition: what the user wrote.
        new_name: what the class or function is called in the output.
        renamed: names of other definitions of the config that are called otherwise in the output.
        name_map: pieces of identifiers to exchange, longest first, each place once.

    Raises:
        ConfigError: a name to be exchanged is also a local variable of the definition.
    """
    wanted = {**renamed, definition.name: new_name}
    wanted = {old: new for old, new in wanted.items() if old != new}
    source = _parse(definition.text, definition.place)
    names = _Names()
    source.module.visit(names)
    for node in names.bound:
        if node.value in wanted and node is not names.own:
            raise ConfigError(
                f"{node.value} is both a definition of this config and a local name here",
                place=Place(definition.place.path, _config_line(definition, source.line(node))),
                remedy="give the local name another name",
            )
    edits = list(_edits(source, names, wanted, _pieces(name_map)))
    return splice(source.data, edits)[0].decode("utf-8")


def global_names(definition: Definition) -> set[str]:
    """Every identifier that a definition mentions as a plain name."""
    names = _Names()
    _parse(definition.text, definition.place).module.visit(names)
    return {node.value for node in names.read}


def _edits(source: Source, names: _Names, wanted: Mapping[str, str], pieces: Callable[[str], str]) -> Iterator[Edit]:
    plain = {id(node) for node in names.read}
    for node in names.every:
        is_plain = id(node) in plain or node is names.own
        new = wanted[node.value] if is_plain and node.value in wanted else pieces(node.value)
        if new != node.value:
            start, end = source.span(node)
            yield Edit(start, end, new.encode("utf-8"), "rename", node.value)
    for text in names.annotations:
        old = text.value
        new = re.sub(r"\b[^\W\d]\w*", lambda found: wanted.get(found.group(), pieces(found.group())), old)
        if new != old:
            start, end = source.span(text)
            yield Edit(start, end, new.encode("utf-8"), "rename", old)


def _pieces(name_map: Mapping[str, str]) -> Callable[[str], str]:
    if not name_map:
        return lambda name: name
    pattern = re.compile("|".join(re.escape(key) for key in sorted(name_map, key=lambda key: (-len(key), key))))
    return lambda name: pattern.sub(lambda found: name_map[found.group()], name)


class _Names(cst.CSTVisitor):
    """Sort the identifiers of a definition: those read as plain names, those bound, and strings in annotations."""

    def __init__(self) -> None:
        self.every: list[cst.Name] = []
        self.read: list[cst.Name] = []
        self.bound: list[cst.Name] = []
        self.annotations: list[cst.SimpleString] = []
        self.own: cst.Name | None = None
        self._not_read: set[int] = set()
        self._depth = 0

    def visit_Name(self, node: cst.Name) -> None:
        self.every.append(node)
        if id(node) not in self._not_read:
            self.read.append(node)

    def _definition(self, name: cst.Name) -> None:
        if self.own is None:
            self.own = name
        self._not_read.add(id(name))
        self.bound.append(name)

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        self._definition(node.name)

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        self._definition(node.name)

    def visit_Attribute(self, node: cst.Attribute) -> None:
        self._not_read.add(id(node.attr))

    def visit_Arg(self, node: cst.Arg) -> None:
        if node.keyword is not None:
            self._not_read.add(id(node.keyword))

    def visit_Param(self, node: cst.Param) -> None:
        self._not_read.add(id(node.name))
        self.bound.append(node.name)

    def visit_AssignTarget(self, node: cst.AssignTarget) -> None:
        if isinstance(node.target, cst.Name):
            self.bound.append(node.target)

    def visit_Annotation(self, node: cst.Annotation) -> None:
        self._depth += 1

    def leave_Annotation(self, original_node: cst.Annotation) -> None:
        self._depth -= 1

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        if self._depth:
            self.annotations.append(node)


def _parse(text: str, place: Place) -> Source:
    try:
        return Source(text.encode("utf-8"), place.path)
    except SourceError as error:
        raise ConfigError("this text is not valid Python", place=place, found=error.found or error.message) from error


def _config_line(definition: Definition, line: int) -> int:
    """Lines of the text count from the definition's first line; decorators of ours in between shift it a little."""
    return (definition.place.line or 1) + max(0, line - 1)


def _string_lines(source: Source) -> set[int]:
    """Numbers of the lines that begin inside a string literal, docstrings aside: those may be shifted."""
    found: set[int] = set()
    strings = _Strings()
    source.module.visit(strings)
    for node in strings.found:
        start, end = source.span(node)
        found.update(range(source.line_at(start) + 1, source.line_at(end) + 1))
    return found


class _Strings(cst.CSTVisitor):
    def __init__(self) -> None:
        self.found: list[cst.CSTNode] = []
        self._docstring: cst.CSTNode | None = None

    def visit_IndentedBlock(self, node: cst.IndentedBlock) -> None:
        self._docstring = node.body[0] if node.body and is_docstring(node.body[0]) else None

    def visit_SimpleStatementLine(self, node: cst.SimpleStatementLine) -> bool:
        return node is not self._docstring

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        self.found.append(node)

    def visit_FormattedString(self, node: cst.FormattedString) -> None:
        self.found.append(node)
