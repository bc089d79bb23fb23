"""What a recipe is, and what is said about one recipe on one file."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import libcst as cst

from .edits import Edit
from .source import Function, Source

S = TypeVar("S")


@dataclass(frozen=True)
class Site(Generic[S]):
    """A place with the shape that a recipe looks for. ``found`` is whatever its guard and edit need to know."""

    function: Function
    node: cst.CSTNode
    found: S


def _no_parts(site: Site[Any]) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Recipe(Generic[S]):
    """One change, described once for every architecture that has its shape.

    ``match`` finds candidate sites in one function; ``guard`` returns the reason why a candidate must be left alone, or
    None; ``edit`` returns the edits of one site, which are made all or none. A top-level class or function without
    ``hint`` in its text cannot hold a site; it is not even parsed, which saves most of the time. ``parts`` names what a
    site may have or lack (the cache of a rotation), with the stock name of each: a site that loses one is counted as
    a loss. With ``must_fire`` a file without a site is an error.
    """

    name: str
    description: str
    hint: re.Pattern[str]
    match: Callable[[Source, Function], Iterable[Site[S]]]
    guard: Callable[[Source, Site[S]], str | None]
    edit: Callable[[Source, Site[S]], list[Edit]]
    parts: Callable[[Site[S]], Mapping[str, str]] = _no_parts
    must_fire: bool = False


AnyRecipe = Recipe[Any]


@dataclass(frozen=True)
class RecipeSet:
    """Recipes in the order in which they are tried, and the digest (12 hex) of their definitions."""

    recipes: tuple[AnyRecipe, ...]
    digest: str


class Status(str, enum.Enum):
    """How one recipe ended on one file; there is no fifth way."""

    APPLIED = "applied"
    ALREADY = "already there"
    NOT_APPLICABLE = "not applicable"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Decline:
    """A candidate that was left alone, and why. ``line`` counts from 1 in the stock file."""

    qualname: str
    line: int
    reason: str


@dataclass(frozen=True)
class Outcome:
    """The account of one recipe on one file.

    ``sites`` are (qualname, stock line) of each edited site, ``parts`` the parts of each with their stock names.
    """

    recipe: str
    status: Status
    sites: tuple[tuple[str, int], ...] = ()
    declined: tuple[Decline, ...] = field(default=())
    reason: str | None = None
    parts: tuple[Mapping[str, str], ...] = ()

    @property
    def keys(self) -> tuple[tuple[str, str], ...]:
        """(what, qualname) of every site and of every part: ``("qk_rope.cache", "LlamaAttention.forward")``."""
        found = [(self.recipe, qualname) for qualname, _ in self.sites]
        for (qualname, _), parts in zip(self.sites, self.parts, strict=False):
            found += [(f"{self.recipe}.{part}", qualname) for part in parts]
        return tuple(found)

    @property
    def counts(self) -> dict[str, int]:
        """How many sites there are, and how many of them have each part: ``{"qk_rope": 2, "qk_rope.cache": 1}``."""
        return dict(sorted(Counter(what for what, _ in self.keys).items()))
