"""The places that the recipes edit in one file, with a hash of each at two levels."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

from ...errors import InternalError, Place
from ..cache import Cache
from ..config.stock import scope
from ..edits import AppliedEdit
from ..engine import Result, generate
from ..recipe import RecipeSet
from ..source import Source

Key = tuple[str, str]
_HEADER = ("marker", "import")


@dataclass(frozen=True)
class EditedSite:
    """Everything that one recipe edits in one function: ``count`` sites, with the parts of all of them.

    ``window`` is the stock text from the first edited line to the last, ``edited`` the same lines of the overlay,
    ``definition`` the whole stock function; all without common indentation.
    """

    recipe: str
    qualname: str
    line: int
    window: str
    edited: str
    definition: str
    count: int = 1
    parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What makes it the same site in another release."""
        return self.recipe, self.qualname


class FileSites:
    """One file of one release, read and edited by the recipes when first asked."""

    def __init__(self, data: bytes, path: str, label: str, recipes: RecipeSet, cache: Cache) -> None:
        self.data = data
        self.path = path
        self._label = label
        self._recipes = recipes
        self._cache = cache

    @cached_property
    def sha256(self) -> str:
        """Hash of the file's bytes."""
        return sha256(self.data).hexdigest()

    @cached_property
    def result(self) -> Result:
        """What the recipes do; raises OverlayError where the file is not stock source."""
        known = self._cache.get(self.path, self.data)
        if known is None:
            known = generate(self.data, self.path, self._recipes, label=self._label, source=self._source)
            self._cache.put(known)
        return known.require_clean()

    @cached_property
    def _source(self) -> Source:
        return Source(self.data, self._label)

    @cached_property
    def _functions(self) -> dict[str, tuple[int, int]]:
        """First and last line of every function."""
        return dict(_functions(self._source.tree.body, ""))

    @cached_property
    def sites(self) -> dict[Key, EditedSite]:
        """The edited sites in the order of the file."""
        groups: dict[Key, list[AppliedEdit]] = {}
        for edit in self.result.edits:
            if edit.recipe not in _HEADER:
                groups.setdefault((edit.recipe, edit.qualname), []).append(edit)
        return {key: self._site(key, edits) for key, edits in groups.items()}

    def _site(self, key: Key, edits: Sequence[AppliedEdit]) -> EditedSite:
        stock = [edit.stock for edit in edits]
        overlay = [edit.overlay for edit in edits]
        first = self.data.count(b"\n", 0, stock[0][0]) + 1
        definition = self.definition(key[1])
        if definition is None:
            raise InternalError(
                f"recipe {key[0]} edited {key[1]}, which is no function", place=Place(self._label, first)
            )
        return EditedSite(
            *key,
            first,
            _lines(self.data, stock[0][0], stock[-1][1]),
            _lines(self.result.overlay, overlay[0][0], overlay[-1][1]),
            definition,
            *self._account(key),
        )

    def _account(self, key: Key) -> tuple[int, dict[str, str]]:
        """How many sites the recipe has in the function, and their parts."""
        outcome = next(one for one in self.result.outcomes if one.recipe == key[0])
        mine = [parts for site, parts in zip(outcome.sites, outcome.parts, strict=True) if site[0] == key[1]]
        return len(mine), {part: name for parts in mine for part, name in parts.items()}

    def definition(self, qualname: str) -> str | None:
        """The stock text of a function, None where it is not there."""
        if qualname not in self._functions:
            return None
        first, last = self._functions[qualname]
        lines = self.data.replace(b"\r\n", b"\n").split(b"\n")[first - 1 : last]
        return textwrap.dedent(b"\n".join(lines).decode("utf-8"))

    def declined(self, key: Key) -> str | None:
        """Why the recipe left this function alone, where it looked at it."""
        recipe, qualname = key
        for outcome in self.result.outcomes:
            for one in outcome.declined if outcome.recipe == recipe else ():
                if one.qualname == qualname:
                    return one.reason
        return None

    @cached_property
    def qualnames(self) -> tuple[str, ...]:
        """Every function of the file."""
        return tuple(self._functions)


def _functions(body: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
    for node in scope(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, (node.lineno, node.end_lineno or node.lineno)
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")


def short_hash(text: str) -> str:
    """First 12 hex digits over a text, blank ends of lines aside."""
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return sha256(lines.encode("utf-8")).hexdigest()[:12]


def _lines(data: bytes, start: int, end: int) -> str:
    """The whole lines that hold a span; an insertion's line is the one that follows it."""
    begin = data.rfind(b"\n", 0, start) + 1
    stop = data.find(b"\n", end)
    text = data[begin : len(data) if stop < 0 else stop].decode("utf-8").replace("\r", "")
    return textwrap.dedent(text)
