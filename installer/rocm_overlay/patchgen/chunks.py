"""A file in pieces: each top-level statement with its own tree, parsed when it is first needed.

LibCST needs half a second for a large file and its positions, and a recipe looks into a few classes of it. Python's own
parser, ten times faster, says where the top-level statements lie.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

import libcst as cst
from libcst.metadata import ByteSpanPositionProvider, CodeSpan
from libcst.metadata.span_provider import SpanProvidingCodegenState, byte_length_in_utf8

from ..errors import InternalError, Place, SourceError

NEWLINE = re.compile(rb"\r\n|\n|\r")


class Lines:
    """Where the lines of a file begin; ``lead`` is the length of a byte order mark."""

    def __init__(self, data: bytes, lead: int) -> None:
        self._size = len(data)
        self._starts = [lead, *(found.end() for found in NEWLINE.finditer(data, lead))]

    def start(self, line: int) -> int:
        """Offset of the first byte of a 1-based line; the end of the file for the line after the last."""
        return self._starts[line - 1] if line <= len(self._starts) else self._size

    def at(self, offset: int) -> int:
        """1-based line of a byte offset."""
        return max(1, bisect_right(self._starts, offset))


class Chunk:
    """Whole lines of a file, from ``start`` on: one top-level statement, or several that share a line."""

    def __init__(self, data: bytes, start: int, end: int, place: Place) -> None:
        self.start = start
        self.text = data[start:end].decode("utf-8")
        self.place = place

    @property
    def module(self) -> cst.Module:
        """The parsed tree; it renders back to the same text, or reading it fails."""
        return self._parsed[0]

    @property
    def spans(self) -> Mapping[cst.CSTNode, CodeSpan]:
        """Byte spans of every node, relative to ``start``."""
        return self._parsed[1]

    @cached_property
    def _parsed(self) -> tuple[cst.Module, Mapping[cst.CSTNode, CodeSpan]]:
        try:
            module = cst.parse_module(self.text)
        except cst.ParserSyntaxError as error:
            raise SourceError(
                "LibCST cannot parse this file, though Python can",
                place=Place(self.place.path, (self.place.line or 1) + error.raw_line - 1),
                found=error.message,
                remedy="upgrade libcst",
            ) from error
        # What `module.code` and the provider's resolution do, in one pass: each walks the whole tree, and resolving
        # walks it once more for providers that nobody asked for.
        provider = ByteSpanPositionProvider()
        state = SpanProvidingCodegenState(
            default_indent=module.default_indent,
            default_newline=module.default_newline,
            provider=provider,
            get_length=len if self.text.isascii() else byte_length_in_utf8,
        )
        module._codegen(state)
        if "".join(state.tokens) != self.text:
            raise InternalError("LibCST does not render this file back to itself", place=self.place)
        return module, cast("Mapping[cst.CSTNode, CodeSpan]", provider._computed)

    @property
    def is_parsed(self) -> bool:
        """Say whether nodes of this chunk can be around at all."""
        return "_parsed" in self.__dict__


def chunks(data: bytes, statements: Sequence[ast.stmt], lines: Lines, path: str) -> list[Chunk]:
    """Return one chunk per top-level statement, in order."""
    ranges: list[tuple[int, int]] = []
    for statement in statements:
        first, last = first_line(statement), statement.end_lineno or statement.lineno
        if ranges and first <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(last, ranges[-1][1]))
        else:
            ranges.append((first, last))
    return [Chunk(data, lines.start(first), lines.start(last + 1), Place(path, first)) for first, last in ranges]


def first_line(statement: ast.stmt) -> int:
    """The first line of a statement, decorators included."""
    decorators: Sequence[ast.expr] = getattr(statement, "decorator_list", ())
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])
