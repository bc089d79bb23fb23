"""Latent attention's rotation and joining (deepseek_v3): q and k made in one call, where stock rotates and then joins.

The parts of a head that carry the position are rotated, by one of two functions, the key's part is spread over the
heads, and both are joined with the parts without position. Our call comes in front; where it gave a result, the
statements that make q and k take it from there.

In transformers 5 the cache takes the latents: q is joined with what the rotation left, the key's part goes into the
cache as it is, and a method of its own joins the keys that come out. The call then makes q and the key's part, and
that method asks for the whole key in front of its two writes.
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

_ROTATION = """
if __interleaved:
    __q_rot, __k_rot = __pairs(__q_rot, __k_rot, __cos, __sin)
else:
    __q_rot, __k_rot = __halves(__q_rot, __k_rot, __cos, __sin)
"""
JOIN = Pattern(f"""{_ROTATION}
__k_rot = __k_rot.expand(*__k_pass.shape[:-1], -1)
__q = torch.cat((__q_pass, __q_rot), dim=-1)
__k = torch.cat((__k_pass, __k_rot), dim=-1)
""")
CACHED = tuple(
    Pattern(f"""{_ROTATION}
if __cache is not None:
    __latent, __k_rot = __cache.update(__latent, __k_rot, self.layer_idx{words})
__q = torch.cat((__q_pass, __q_rot), dim=-1)
""")
    for words in ("", ", kwargs=__more")
)
EXPANDED = Pattern("""
__k_pass, __v = torch.split(__both, [__still, __values], dim=-1)
__k_rot = __k_rot.expand(-1, __k_pass.shape[1], -1, -1)
__k = __both.new_empty(*__both.shape[:-1], __still + __turned)
__k[..., : __still].copy_(__k_pass)
__k[..., __still :].copy_(__k_rot)
return __k, __v
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
SLICED_PAIRS = Pattern("""
__cos = __cos[..., : __cos.shape[-1] // 2].unsqueeze(__dim)
__sin = __sin[..., : __sin.shape[-1] // 2].unsqueeze(__dim)
__a, __b = __q[..., 0::2], __q[..., 1::2]
__c, __d = __k[..., 0::2], __k[..., 1::2]
__q_out = torch.cat([__a * __cos - __b * __sin, __b * __cos + __a * __sin], dim=-1)
__k_out = torch.cat([__c * __cos - __d * __sin, __d * __cos + __c * __sin], dim=-1)
return __q_out, __k_out
""")
"""The pairs by the first half of the tables alone, which is the same where both halves are equal."""
_EQUAL_HALVES = re.compile(r"\b\w+ = torch\.cat\(\((\w+), \1\), dim=-1\)")


@dataclass(frozen=True)
class Joined:
    """The statements of one of the forms, what their holes took, and what is done behind them."""

    found: Bindings
    statements: tuple[cst.BaseStatement, ...]
    tail: tuple[cst.BaseStatement, ...]


def match(source: Source, function: Function) -> Iterator[Site[Joined]]:
    """The statements of a method that rotate and join, and those that join the key behind a cache."""
    if not function.is_method:
        return
    for pattern in (JOIN, *CACHED, EXPANDED):
        length = len(pattern.statements)
        for index in range(len(function.body) - length + 1):
            statements = function.body[index : index + length]
            found = pattern.match(statements)
            if found is not None:
                yield Site(function, statements[0], Joined(found, statements, function.body[index + length :]))


def guard(source: Source, site: Site[Joined]) -> str | None:
    """Decline other rotations, and a method that uses the rotated parts later."""
    found = site.found.found
    if re.search(rf"\b{RESULT}\b", source.text):
        return f"the file already uses the name {RESULT}"
    if "__both" in found:
        return None
    for hole, patterns in (("__pairs", (PAIRS, SLICED_PAIRS)), ("__halves", (rope.FULL,))):
        name = source.code(found[hole])
        function = source.function(name)
        if function is None or not any(_rotates(source, function, pattern) for pattern in patterns):
            return f"{name} is not a rotation that we know"
    later = {name for statement in site.found.tail for name in names(statement)}
    rotated = {source.code(found[hole]) for hole in ("__q_rot", "__k_rot")}
    if "__cache" in found:
        if source.code(found["__q"]) in names(site.found.statements[1]):
            return "the cache takes what q is called"
        rotated = {source.code(found["__q_rot"])}
    return f"{', '.join(sorted(rotated & later))} is used later" if rotated & later else None


def _rotates(source: Source, function: Function, pattern: Pattern) -> bool:
    """Whether the function is f(q, k, cos, sin, ...) of that form, which unsqueezes in dimension 1 unless told."""
    found = pattern.match(function.body)
    if found is None:
        return False
    given = tuple(source.code(found[hole]) for hole in ("__q", "__k", "__cos", "__sin"))
    defaults = {one.name.value: one.default for one in function.node.params.params}
    dim = defaults.get(source.code(found["__dim"]))
    return (
        function.parameters[:4] == given
        and isinstance(dim, cst.Integer)
        and dim.value == "1"
        and (_halved(source, found) if "__rotate" in found else bool(_EQUAL_HALVES.search(source.text)))
    )


def _halved(source: Source, found: Bindings) -> bool:
    """Whether ``__rotate`` is the file's rotate_half."""
    rotate = source.function(source.code(found["__rotate"]))
    half = None if rotate is None else rope.ROTATE_HALF.match(rotate.body)
    return rotate is not None and half is not None and rotate.parameters == (source.code(half["__x"]),)


def edit(source: Source, site: Site[Joined]) -> list[Edit]:
    """The call in front of the rotation, which runs where there is no result, and the joins likewise."""
    found, statements = site.found.found, site.found.statements
    if "__both" in found:
        return _expanded(source, site)
    anchor = source.before(statements[0])
    if anchor is None:
        return []
    alone = "__cache" in found
    q_pass, q_rot, k_rot, cos, sin, q = (
        source.code(found[hole]) for hole in ("__q_pass", "__q_rot", "__k_rot", "__cos", "__sin", "__q")
    )
    k_pass, k = ("None", k_rot) if alone else (source.code(found[hole]) for hole in ("__k_pass", "__k"))
    rotation = ", ".join(source.code(found[hole]) for hole in ("__interleaved", "__halves", "__pairs"))
    lines = [
        f"{RESULT} = None",
        f"if {test(rope.NAME)}:",
        f"    {RESULT} = _amd.latent_rope(",
        f"        {', '.join((q_pass, q_rot, k_pass, k_rot, cos, sin))},",
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
    joins = ((q, statements[-1]),) if alone else ((q, statements[-2]), (k, statements[-1]))
    for name, statement in joins:
        assigned = assignment(statement)
        assert assigned is not None
        begin, end = source.span(assigned[1])
        text = f"{source.code(assigned[1])} if {RESULT} is None else {name}"
        edits.append(Edit(begin, end, text.encode("utf-8"), NAME, site.function.qualname))
    return edits


def _expanded(source: Source, site: Site[Joined]) -> list[Edit]:
    """The key's join in front of the statement that spreads its rotated part over the heads."""
    anchor = source.before(site.found.statements[1])
    if anchor is None:
        return []
    k_pass, k_rot, turned, v = (
        source.code(site.found.found[hole]) for hole in ("__k_pass", "__k_rot", "__turned", "__v")
    )
    lines = [
        f"if {test(rope.NAME)}:",
        f"    {RESULT} = _amd.latent_key({k_pass}, {k_rot}, {turned})",
        f"    if {RESULT} is not None:",
        f"        return {RESULT}, {v}",
    ]
    return [insertion(NAME, site.function, anchor, lines)]


RECIPE = Recipe(
    name=NAME,
    description="latent attention: rotated parts of heads joined with the parts without position",
    hint=re.compile(r"\.expand\(\*\w+\.shape\[:-1\], -1\)|\.expand\(-1, \w+\.shape\[1\], -1, -1\)"),
    match=match,
    guard=guard,
    edit=edit,
)
