"""Latent attention's two projections down, of q and of what keys and values are made of: both of one tensor, so asked
for at once in front of the first.

    q = up(norm(down(h))); ...; kv = latent(h)     q = up(norm(<first> if ... else down(h))); ...; <second> if ...

As in the qkv recipe, each stock statement takes its result from a list that is None when off. A model without a rank
for q has no first projection, and is left alone when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import self_call, walk
from rocm_overlay.patchgen.layout import insertion, test
from rocm_overlay.patchgen.modules import built_as
from rocm_overlay.patchgen.pattern import Bindings, Pattern
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source

from . import qkv

NAME = "low_rank"
RESULTS = "_amd_down"
DOWN = Pattern("""
if self.__rank is None:
    __q = self.__whole(__h)
else:
    __q = self.__up(self.__norm(self.__down(__h)))
__q = __q.view(__shape).transpose(1, 2)
__q_pass, __q_rot = torch.split(__q, __sizes, dim=-1)
__kv = self.__latent(__h)
""")
_LINEAR = ("nn.Linear", "torch.nn.Linear", "Linear")

Found = tuple[Bindings, tuple[cst.BaseStatement, ...]]


def match(source: Source, function: Function) -> Iterator[Site[Found]]:
    """The four statements, anywhere among a method's own."""
    if not function.is_method:
        return
    length = len(DOWN.statements)
    for index in range(len(function.body) - length + 1):
        statements = function.body[index : index + length]
        found = DOWN.match(statements)
        if found is not None:
            yield Site(function, statements[0], (found, statements))


def guard(source: Source, site: Site[Found]) -> str | None:
    """Decline where the tensor is not one plain name that stays what it is, or a projection is plainly no Linear."""
    found = site.found[0]
    taken = source.code(found["__h"])
    if not isinstance(found["__h"], cst.Name):
        return f"the projections take {taken}, expected one plain name"
    if taken in (source.code(found[hole]) for hole in ("__q", "__q_pass", "__q_rot")):
        return f"{taken} is bound between the projections"
    for name in _projections(source, found):
        built = built_as(source, site.function, name)
        if built is not None and built not in _LINEAR:
            return f"self.{name} is not built as nn.Linear"
    return None


def _projections(source: Source, found: Bindings) -> tuple[str, str]:
    return source.code(found["__down"]), source.code(found["__latent"])


def edit(source: Source, site: Site[Found]) -> list[Edit]:
    """The question in front of the first statement, and two calls that look for their result first."""
    found, statements = site.found
    anchor = source.before(statements[0])
    if anchor is None:
        return []
    down, latent = names = _projections(source, found)
    lines = [
        f"{RESULTS} = None",
        f"if {test(qkv.NAME)} and self.{source.code(found['__rank'])} is not None:",
        f'    {RESULTS} = list(_amd.qkv_proj(self, {source.code(found["__h"])}, ("{down}", "{latent}")))',
    ]
    edits = [insertion(NAME, site.function, anchor, lines)]
    for statement in statements:
        for node in walk(statement):
            call = self_call(node)
            if call is not None and call[0] in names and isinstance(node, cst.BaseExpression):
                edits.append(qkv.taken(NAME, source, site.function, node, RESULTS))
    return edits


RECIPE = Recipe(
    name=NAME,
    description="latent attention: the projections down of q and of keys and values, of one tensor",
    hint=re.compile(r"= self\.\w+\(self\.\w+\(self\.\w+\("),
    match=match,
    guard=guard,
    edit=edit,
)
