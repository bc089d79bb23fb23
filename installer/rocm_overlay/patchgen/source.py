"""One stock file: its bytes, its LibCST tree, and the way from a tree node to a byte span."""

from __future__ import annotations

import ast
import codecs
import io
import re
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import libcst as cst

from ..errors import InternalError, Place, SourceError
from .chunks import NEWLINE, Chunk, Lines, chunks


@dataclass(frozen=True)
class Anchor:
    """The start of a statement's own line: where a statement can be put before it."""

    offset: int
    indent: str
    newline: str


@dataclass(frozen=True)
class Function:
    """A function or method. ``body`` are its statements after the docstring; empty for a one-line suite."""

    qualname: str
    node: cst.FunctionDef
    owner: cst.ClassDef | None
    body: tuple[cst.BaseStatement, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of every parameter in order, including keyword-only and starred ones."""
        parameters = self.node.params
        listed = [*parameters.posonly_params, *parameters.params]
        if isinstance(parameters.star_arg, cst.Param):
            listed.append(parameters.star_arg)
        listed += parameters.kwonly_params
        if parameters.star_kwarg:
            listed.append(parameters.star_kwarg)
        return tuple(parameter.name.value for parameter in listed)

    @property
    def is_method(self) -> bool:
        """True where the first parameter is ``self`` of a class."""
        return self.owner is not None and self.parameters[:1] == ("self",)


@dataclass(frozen=True)
class Block:
    """Statements of one suite inside a function, and the enclosing suites from the function's own inwards.

    ``path`` holds (suite, index of the statement that contains the next suite); ``loops`` counts the for and while
    statements on the way.
    """

    statements: tuple[cst.BaseStatement, ...]
    path: tuple[tuple[Block, int], ...] = ()
    loops: int = 0


class Source:
    """A modeling file, read once. ``path`` is only a label for messages: nothing is read from it.

    Raises:
        SourceError: the bytes are not UTF-8, declare another encoding, or are not valid Python.
    """

    def __init__(self, data: bytes, path: str) -> None:
        self.data = data
        self.path = path
        self._lead = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
        self.text = self._decode()
        self.tree = self._parse()
        self._known: dict[Chunk, tuple[Function, ...]] = {}

    def _decode(self) -> str:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(self.data).readline)
            text = self.data[self._lead :].decode("utf-8")
        except (SyntaxError, UnicodeDecodeError) as error:
            line = None
            if isinstance(error, UnicodeDecodeError):
                line = self.data.count(b"\n", 0, self._lead + error.start) + 1
            raise SourceError(
                "the file is not UTF-8 text", place=Place(self.path, line), expected="UTF-8", found=str(error)
            ) from error
        if encoding not in ("utf-8", "utf-8-sig"):
            raise SourceError(
                "the file declares another encoding", place=Place(self.path, 1), expected="UTF-8", found=encoding
            )
        return text

    def _parse(self) -> ast.Module:
        # Python's own parser is ten times faster than LibCST's, says better where it stopped, and reads every file:
        # one that no recipe needs to look into must be Python too.
        try:
            with warnings.catch_warnings():
                # Stock files may hold escapes that newer Pythons warn about.
                warnings.simplefilter("ignore")
                return ast.parse(self.text)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            text = (getattr(error, "text", None) or "").strip()
            raise SourceError(
                f"the file is not valid Python: {getattr(error, 'msg', error)}",
                place=Place(self.path, line),
                expected="stock transformers source",
                found=text or None,
            ) from error

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the stock bytes."""
        return sha256(self.data).hexdigest()

    @cached_property
    def lines(self) -> Lines:
        """Where the lines begin."""
        return Lines(self.data, self._lead)

    @cached_property
    def _whole(self) -> Chunk:
        return Chunk(self.data, self._lead, len(self.data), Place(self.path))

    @property
    def module(self) -> cst.Module:
        """The tree of the whole file. Its nodes are others than those of :attr:`functions`."""
        return self._whole.module

    @cached_property
    def _chunks(self) -> list[Chunk]:
        return chunks(self.data, self.tree.body, self.lines, self.path)

    def span(self, node: cst.CSTNode) -> tuple[int, int]:
        """Byte offsets of a node in the file, without its surrounding parentheses, whitespace and comments."""
        for chunk in (*self._chunks, self._whole):
            span = chunk.spans.get(node) if chunk.is_parsed else None
            if span is not None:
                start = chunk.start + span.start
                return start, start + span.length
        raise InternalError("a node of another file", place=Place(self.path))

    def code(self, node: cst.CSTNode) -> str:
        """The stock text of a node, verbatim."""
        start, end = self.span(node)
        return self.data[start:end].decode("utf-8")

    def line(self, node: cst.CSTNode) -> int:
        """1-based line on which a node starts."""
        return self.line_at(self.span(node)[0])

    def line_at(self, offset: int) -> int:
        """1-based line of a byte offset."""
        return self.lines.at(offset)

    def place(self, node: cst.CSTNode) -> Place:
        """The position of a node, for messages."""
        return Place(self.path, self.line(node))

    def line_start(self, offset: int) -> int:
        """Offset of the first byte of the line that holds ``offset``."""
        return max(self._lead, self.data.rfind(b"\n", 0, offset) + 1, self.data.rfind(b"\r", 0, offset) + 1)

    def newline_after(self, offset: int) -> str:
        """The line ending in use at ``offset``; that of the first line where the file ends without one."""
        found = NEWLINE.search(self.data, offset) or NEWLINE.search(self.data)
        return found.group().decode("ascii") if found else "\n"

    def before(self, statement: cst.BaseStatement) -> Anchor | None:
        """Where to put a statement before ``statement``: above its own comment lines. None if it shares its line."""
        start = self.span(_first_token(statement))[0]
        begin = self.line_start(start)
        indent = self.data[begin:start]
        if indent.strip(b" \t"):
            return None
        for line in reversed(_leading_lines(statement)):
            if line.comment is None:
                break
            end = begin - (2 if self.data[begin - 2 : begin] == b"\r\n" else 1)
            begin = self.line_start(end)
        return Anchor(begin, indent.decode("ascii"), self.newline_after(start))

    @cached_property
    def functions(self) -> tuple[Function, ...]:
        """Every function and method that is not nested in another function, in source order."""
        return tuple(one for chunk in self._chunks for one in self._functions_of(chunk))

    def functions_near(self, hint: re.Pattern[str]) -> Iterator[Function]:
        """The functions of every top-level statement whose text has the hint."""
        for chunk in self._chunks:
            if hint.search(chunk.text):
                yield from self._functions_of(chunk)

    def _functions_of(self, chunk: Chunk) -> tuple[Function, ...]:
        if chunk not in self._known:
            self._known[chunk] = tuple(_functions(chunk.module.body, "", None))
        return self._known[chunk]

    def _candidates(self, name: str, owner: cst.ClassDef | None) -> Iterator[Function]:
        if owner is not None:  # a node of ours: its chunk is known
            yield from (one for functions in self._known.values() for one in functions)
            return
        yield from self.functions_near(re.compile(rf"\bdef\s+{re.escape(name)}\b"))

    def function(self, name: str, owner: cst.ClassDef | None = None) -> Function | None:
        """The only function of that name in the module or in the class ``owner``; None if absent or ambiguous."""
        found = [one for one in self._candidates(name, owner) if one.owner is owner and one.node.name.value == name]
        return found[0] if len(found) == 1 else None


def blocks(function: Function) -> Iterator[Block]:
    """Yield every suite of a function, its own first, never entering nested functions or classes."""
    if function.body:
        yield from _blocks(Block(function.body))


def _blocks(block: Block) -> Iterator[Block]:
    yield block
    for index, statement in enumerate(block.statements):
        loops = block.loops + isinstance(statement, (cst.For, cst.While))
        for suite in suites(statement):
            yield from _blocks(Block(suite, (*block.path, (block, index)), loops))


def suites(statement: cst.BaseStatement) -> Iterator[tuple[cst.BaseStatement, ...]]:
    """Yield the indented suites that a compound statement holds, except bodies of functions and classes."""
    if isinstance(statement, (cst.FunctionDef, cst.ClassDef)):
        return
    for part in (statement, *_continuations(statement)):
        body = getattr(part, "body", None)
        if isinstance(body, cst.IndentedBlock):
            yield tuple(body.body)


def _continuations(statement: cst.BaseStatement) -> Iterator[cst.CSTNode]:
    for name in ("handlers", "orelse", "finalbody"):
        part = getattr(statement, name, None)
        if isinstance(part, Sequence):
            yield from part
        elif isinstance(part, cst.If):
            yield part
            yield from _continuations(part)
        elif part is not None:
            yield part


def _functions(statements: Sequence[cst.CSTNode], prefix: str, owner: cst.ClassDef | None) -> Iterator[Function]:
    for statement in statements:
        if isinstance(statement, cst.FunctionDef):
            yield Function(prefix + statement.name.value, statement, owner, _body(statement))
        elif isinstance(statement, cst.ClassDef):
            yield from _functions(statement.body.body, f"{prefix}{statement.name.value}.", statement)
        elif isinstance(statement, cst.BaseStatement):
            for suite in suites(statement):
                yield from _functions(suite, prefix, owner)


def _body(function: cst.FunctionDef) -> tuple[cst.BaseStatement, ...]:
    if not isinstance(function.body, cst.IndentedBlock):
        return ()
    statements = tuple(function.body.body)
    return statements[1:] if statements and is_docstring(statements[0]) else statements


def is_docstring(statement: cst.CSTNode) -> bool:
    """Say whether a statement is a bare string."""
    if not isinstance(statement, cst.SimpleStatementLine) or len(statement.body) != 1:
        return False
    small = statement.body[0]
    return isinstance(small, cst.Expr) and isinstance(small.value, (cst.SimpleString, cst.ConcatenatedString))


def _leading_lines(statement: cst.BaseStatement) -> Sequence[cst.EmptyLine]:
    lines: Sequence[cst.EmptyLine] = getattr(statement, "leading_lines", ())
    return lines


def _first_token(statement: cst.BaseStatement) -> cst.CSTNode:
    return statement.body[0] if isinstance(statement, cst.SimpleStatementLine) else statement
