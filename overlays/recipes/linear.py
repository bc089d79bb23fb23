"""Output projections, dense layers, a stock qkv_proj and the head: call the Linear through amd_ops.

What the module really is, amd_ops looks at when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import self_call, value_of, walk
from rocm_overlay.patchgen.layout import conditional
from rocm_overlay.patchgen.modules import not_linear
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source, blocks

from . import gated_mlp, loss

NAME = "linear"
ATTRIBUTES = ("o_proj", "out_proj", "dense", "down_proj", "qkv_proj", "lm_head")

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
    """Decline another kind of layer, and an argument that is more than a name or a slice of one: twice a long one helps
    nobody, and a call may not be written twice.
    """
    argument = site.found[1]
    if isinstance(argument, cst.Subscript) and not any(isinstance(one, cst.Call) for one in walk(argument)):
        argument = argument.value
    if not isinstance(argument, cst.Name):
        return "the argument is neither a plain name nor a slice of one"
    return not_linear(source, site.function, (site.found[0],))


def edit(source: Source, site: Site[Found]) -> list[Edit]:
    """A conditional expression."""
    attribute, argument = site.found
    node = site.node
    assert isinstance(node, cst.BaseExpression)
    call = f"_amd.apply_linear(self.{attribute}, {source.code(argument)})"
    ahead = loss.AHEAD if node in loss.heads(source, site.function) else ""
    return [conditional(NAME, source, site.function, node, call, ahead)]


RECIPE = Recipe(
    name=NAME,
    description=f"an assignment or return of self.<layer>(x), layer one of {', '.join(ATTRIBUTES)}",
    hint=re.compile(rf"\bself\.(?:{'|'.join(ATTRIBUTES)})\("),
    match=match,
    guard=guard,
    edit=edit,
)
