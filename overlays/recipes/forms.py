"""Mark the forwards whose formula we know: ``forward._amd_rms_norm = ("weight", "variance_epsilon", "llama")``.

A decoder layer that wants to fuse with its norm, its MLP or its experts has a module in its hands, and must know what
that module's forward computes. The mark sits on the function, so whoever replaces the forward (a subclass, a patch, a
hub kernel) takes it away. It is a plain attribute: nothing runs, and nothing is needed from us when the file is
imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import assignment, value_of
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source

from . import experts, gated_mlp, rms_norm

NAME = "forms"


@dataclass(frozen=True)
class Mark:
    """The attribute and its value as Python, or why this forward gets none."""

    attribute: str
    value: str
    reason: str | None = None


def match(source: Source, function: Function) -> Iterator[Site[Mark]]:
    """Every forward that the rms_norm, the gated_mlp or the experts recipe knows as a whole."""
    if not function.is_method or function.node.name.value != "forward":
        return
    for norm in rms_norm.match(source, function):
        if rms_norm.guard(source, norm) is None:
            found = norm.found
            value = f'("{found.weight}", "{found.eps}", "{found.form}")'
            yield Site(function, function.node, Mark("_amd_rms_norm", value))
    for mlp in gated_mlp.match(source, function):
        if gated_mlp.guard(source, mlp) is None:
            yield Site(function, function.node, _mlp(function, mlp.found))
    form = experts.form(source, function)
    if form is not None:
        yield Site(function, function.node, Mark("_amd_experts", f'"{form}"'))


def _mlp(function: Function, found: gated_mlp.Mlp) -> Mark:
    whole = found.expression is None or _is_all(function, found.expression)
    if not whole or not isinstance(found.x, cst.Name) or function.parameters != ("self", found.x.value):
        return Mark("", "", "the forward does more than the gated MLP")
    words = [f'"{role}": "{name}"' for role, name in found.roles if name != gated_mlp._DEFAULTS[role]]
    return Mark("_amd_gated_mlp", f"{{{', '.join(words)}}}")


def _is_all(function: Function, expression: cst.BaseExpression) -> bool:
    """True for ``return <expression>`` and ``name = <expression>; return name``."""
    if value_of(function.body[0]) is not expression:
        return False
    assigned = assignment(function.body[0])
    if assigned is None:
        return len(function.body) == 1
    returned = value_of(function.body[1]) if len(function.body) == 2 else None
    target = assigned[0]
    return isinstance(target, cst.Name) and isinstance(returned, cst.Name) and target.value == returned.value


def guard(source: Source, site: Site[Mark]) -> str | None:
    """Decline a forward that does something beside the formula."""
    return site.found.reason


def edit(source: Source, site: Site[Mark]) -> list[Edit]:
    """One statement after the function."""
    return behind(NAME, source, site.function, site.found)


def behind(recipe: str, source: Source, function: Function, mark: Mark) -> list[Edit]:
    """Set ``mark`` in a statement after the function."""
    anchor = source.before(function.node)
    end = source.span(function.body[-1])[1]
    newline = source.newline_after(end)
    line_end = source.data.find(newline.encode("ascii"), end)
    if anchor is None or line_end < 0:
        return []
    offset = line_end + len(newline)
    value = f"{newline}{anchor.indent}".join(mark.value.splitlines())
    text = f"{newline}{anchor.indent}forward.{mark.attribute} = {value}{newline}"
    return [Edit(offset, offset, text.encode("ascii"), recipe, function.qualname)]


RECIPE = Recipe(
    name=NAME,
    description="a forward that is an RMSNorm, a gated MLP or a loop over 3-D experts, and nothing else",
    hint=re.compile(r"rsqrt|\bself\.\w+\(\s*self\.\w+\(|\.chunk\(2, dim=-1\)|one_hot\("),
    match=match,
    guard=guard,
    edit=edit,
)
