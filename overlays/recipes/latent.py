"""Latent attention's rotation and joining (deepseek_v3): q and k made in one call, where stock rotates and then joins.

The parts of a head that carry the position are rotated, by one of two functions, the key's part is spread over the
heads, and both are joined with the parts without position. Our call comes in front; where it gave a result, the
statements that make q and k take it from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import assignment, names
from rocm_overlay.patchgen.layout import insertion, test
from rocm_overlay.patchgen.pattern import Bindings, Pattern
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source

from . import rope

NAME = "latent"
RESULT = "_amd_latent"

JOIN = Pattern("""
if __interleaved:
    __q_rot, __k_rot = __pairs(__q_rot, __k_rot, __cos, __sin)
else:
    __q_rot, __k_rot = __halves(__q_rot, __k_rot, __cos, __sin)
__k_rot = __k_rot.expand(*__k_pass.shape[:-1], -1)
__q = torch.cat((__q_pass, __q_rot), dim=-1)
__k = torch.cat((__k_pass, __k_rot), dim=-1)
""")
PAIRS = Pattern("""
__cos = __cos.unsqueeze(__dim)
__sin = __sin.unsqueeze(__dim)
__b, __h, __s, __d = __q.shape
__q = __q.view(__b, __h, __s, __d // 2, 2).transpose(4, 3).reshape(__b, __h, __s, __d)
__b, __h, __s, __d = __k.shape
__k = __k.view(__b, __h, __s, __d // 2, 2).transpose(4, 3).reshape(__b, __h, __s, __d)
__q_out = (__q * __cos) + (__rotate(__q) * __sin)
__k_out = (__k * __cos) + (__rotate(__k) * __sin)
return __q_out, __k_out
""")


@dataclass(frozen=True)
class Joined:
    """The five statements, what their holes took, and what is done behind them."""

    found: Bindings
    statements: tuple[cst.BaseStatement, ...]
    tail: tuple[cst.BaseStatement, ...]


def match(source: Source, function: Function) -> Iterator[Site[Joined]]:
    """The statements of a method that rotate and join."""
    if not function.is_method:
        return
    length = len(JOIN.statements)
    for index in range(len(function.body) - length + 1):
        statements = function.body[index : index + length]
        found = JOIN.match(statements)
        if found is not None:
            yield Site(function, statements[0], Joined(found, statements, function.body[index + length :]))


def guard(source: Source, site: Site[Joined]) -> str | None:
    """Decline other rotations, and a method that uses the rotated parts later."""
    found = site.found.found
    if re.search(rf"\b{RESULT}\b", source.text):
        return f"the file already uses the name {RESULT}"
    for hole, pattern in (("__pairs", PAIRS), ("__halves", rope.FULL)):
        name = source.code(found[hole])
        function = source.function(name)
        if function is None or not _rotates(source, function, pattern):
            return f"{name} is not a rotation that we know"
    later = {name for statement in site.found.tail for name in names(statement)}
    rotated = {source.code(found[hole]) for hole in ("__q_rot", "__k_rot")} & later
    return f"{', '.join(sorted(rotated))} is used later" if rotated else None


def _rotates(source: Source, function: Function, pattern: Pattern) -> bool:
    """Whether the function is f(q, k, cos, sin, ...) of that form, which unsqueezes in dimension 1 unless told."""
    found = pattern.match(function.body)
    if found is None:
        return False
    given = tuple(source.code(found[hole]) for hole in ("__q", "__k", "__cos", "__sin"))
    defaults = {one.name.value: one.default for one in function.node.params.params}
    dim = defaults.get(source.code(found["__dim"]))
    rotate = source.function(source.code(found["__rotate"]))
    half = None if rotate is None else rope.ROTATE_HALF.match(rotate.body)
    return (
        function.parameters[:4] == given
        and isinstance(dim, cst.Integer)
        and dim.value == "1"
        and rotate is not None
        and half is not None
        and rotate.parameters == (source.code(half["__x"]),)
    )


def edit(source: Source, site: Site[Joined]) -> list[Edit]:
    """The call in front of the rotation, which runs where there is no result, and the two joins likewise."""
    found, statements = site.found.found, site.found.statements
    anchor = source.before(statements[0])
    if anchor is None:
        return []
    parts, rotation = (
        ", ".join(source.code(found[hole]) for hole in holes)
        for holes in (
            ("__q_pass", "__q_rot", "__k_pass", "__k_rot", "__cos", "__sin"),
            ("__interleaved", "__halves", "__pairs"),
        )
    )
    q, k = (source.code(found[hole]) for hole in ("__q", "__k"))
    lines = [
        f"{RESULT} = None",
        f"if {test(rope.NAME)}:",
        f"    {RESULT} = _amd.latent_rope(",
        f"        {parts},",
        f"        {rotation},",
        "    )",
        f"if {RESULT} is not None:",
        f"    {q}, {k} = {RESULT}",
    ]
    start = source.span(statements[0])[0]
    edits = [
        insertion(NAME, site.function, anchor, lines),
        Edit(start, start, b"el", NAME, site.function.qualname),
    ]
    for name, statement in zip((q, k), statements[-2:], strict=True):
        assigned = assignment(statement)
        assert assigned is not None
        begin, end = source.span(assigned[1])
        text = f"{source.code(assigned[1])} if {RESULT} is None else {name}"
        edits.append(Edit(begin, end, text.encode("utf-8"), NAME, site.function.qualname))
    return edits


RECIPE = Recipe(
    name=NAME,
    description="latent attention: rotated parts of heads joined with the parts without position",
    hint=re.compile(r"\.expand\(\*\w+\.shape\[:-1\], -1\)"),
    match=match,
    guard=guard,
    edit=edit,
)
