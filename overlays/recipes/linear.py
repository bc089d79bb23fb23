"""o_proj, down_proj and a stock qkv_proj: call the Linear through amd_ops, which looks at the module when it runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import self_call, value_of
from rocm_overlay.patchgen.layout import conditional
from rocm_overlay.patchgen.modules import not_linear
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source, blocks

from . import gated_mlp

NAME = "linear"
ATTRIBUTES = frozenset(("o_proj", "down_proj", "qkv_proj"))

Found = tuple[str, cst.BaseExpression]


def match(source: Source, function: Function) -> Iterator[Site[Found]]:
    """Every assignment or return in a method whose whole value is ``self.<attribute>(<argument>)``."""
    if not function.is_method:
        return
    taken = set(gated_mlp.down_calls(source, function))
    if function.node in taken:
        return
    for block in blocks(function):
        for statement in block.statements:
            value = value_of(statement)
            call = self_call(value) if value is not None and value not in taken else None
            if call and value is not None and call[0] in ATTRIBUTES:
                yield Site(function, value, call)


def guard(source: Source, site: Site[Found]) -> str | None:
    """Decline another kind of layer, and an argument that is more than a name: twice a long one helps nobody."""
    if not isinstance(site.found[1], cst.Name):
        return "the argument is not a plain name"
    return not_linear(source, site.function, (site.found[0],))


def edit(source: Source, site: Site[Found]) -> list[Edit]:
    """A conditional expression."""
    attribute, argument = site.found
    node = site.node
    assert isinstance(node, cst.BaseExpression)
    call = f"_amd.apply_linear(self.{attribute}, {source.code(argument)})"
    return [conditional(NAME, source, site.function, node, call)]


RECIPE = Recipe(
    name=NAME,
    description="an assignment or return of self.o_proj(x), self.down_proj(x) or self.qkv_proj(x)",
    hint=re.compile(r"\bself\.(?:o|down|qkv)_proj\("),
    match=match,
    guard=guard,
    edit=edit,
)
