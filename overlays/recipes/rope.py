"""apply_rotary_pos_emb: return the fused op early, keep the stock body below the guard.

The op takes the forms of call that models make; whatever else the function accepts (tables without a batch, packed
tokens, positions that are broadcast) and a ``rotate_half`` that somebody replaced are left to the stock body.

Only the rotate-half layout (first half with second half), full or on the leading part of the head. The function's own
``rotate_half`` is read to be sure: several models have one of that name that interleaves.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.layout import insertion, test
from rocm_overlay.patchgen.pattern import Pattern
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source

NAME = "rope"
FUNCTION = "apply_rotary_pos_emb"

FULL = Pattern("""
    __cos = __cos.unsqueeze(__dim)
    __sin = __sin.unsqueeze(__dim)
    __q_out = (__q * __cos) + (__rotate(__q) * __sin)
    __k_out = (__k * __cos) + (__rotate(__k) * __sin)
    return __q_out, __k_out
""")
PARTIAL = Pattern("""
    __cos = __cos.unsqueeze(__dim)
    __sin = __sin.unsqueeze(__dim)
    __width = __cos.shape[-1]
    __q_rot, __q_pass = __q[..., :__width], __q[..., __width:]
    __k_rot, __k_pass = __k[..., :__width], __k[..., __width:]
    __q_out = torch.cat([(__q_rot * __cos) + (__rotate(__q_rot) * __sin), __q_pass], dim=-1)
    __k_out = torch.cat([(__k_rot * __cos) + (__rotate(__k_rot) * __sin), __k_pass], dim=-1)
    return __q_out, __k_out
""")
PARTIAL_FIRST = Pattern("""
    __cos = __cos.unsqueeze(__dim)
    __sin = __sin.unsqueeze(__dim)
    __width = __cos.shape[-1]
    __q_rot, __q_pass = __q[..., :__width], __q[..., __width:]
    __k_rot, __k_pass = __k[..., :__width], __k[..., __width:]
    __q_out = (__q_rot * __cos) + (__rotate(__q_rot) * __sin)
    __k_out = (__k_rot * __cos) + (__rotate(__k_rot) * __sin)
    __q_out = torch.cat([__q_out, __q_pass], dim=-1)
    __k_out = torch.cat([__k_out, __k_pass], dim=-1)
    return __q_out, __k_out
""")
PARTIAL_IN_RETURN = Pattern("""
    __cos = __cos.unsqueeze(__dim)
    __sin = __sin.unsqueeze(__dim)
    __width = __cos.shape[-1]
    __q, __q_pass = __q[..., :__width], __q[..., __width:]
    __k, __k_pass = __k[..., :__width], __k[..., __width:]
    __q_out = (__q * __cos) + (__rotate(__q) * __sin)
    __k_out = (__k * __cos) + (__rotate(__k) * __sin)
    return torch.cat((__q_out, __q_pass), dim=-1), torch.cat((__k_out, __k_pass), dim=-1)
""")
# Tables by position, which the function itself looks up.
INDEXED = Pattern("""
    __cos = __cos[__index].unsqueeze(__dim)
    __sin = __sin[__index].unsqueeze(__dim)
    __q_out = (__q * __cos) + (__rotate(__q) * __sin)
    __k_out = (__k * __cos) + (__rotate(__k) * __sin)
    return __q_out, __k_out
""")
# Tables in fp32 and a cast at the end (olmo); and everything in fp32 (modernbert).
CAST = Pattern("""
    __q_type, __k_type = __q.dtype, __k.dtype
    __cos = __cos.unsqueeze(__dim)
    __sin = __sin.unsqueeze(__dim)
    __q_out = (__q * __cos) + (__rotate(__q) * __sin)
    __k_out = (__k * __cos) + (__rotate(__k) * __sin)
    return __q_out.to(__q_type), __k_out.to(__k_type)
""")
IN_FP32 = Pattern("""
    __type = __q.dtype
    __cos = __cos.unsqueeze(__dim)
    __sin = __sin.unsqueeze(__dim)
    __q_out = (__q.float() * __cos) + (__rotate(__q.float()) * __sin)
    __k_out = (__k.float() * __cos) + (__rotate(__k.float()) * __sin)
    return __q_out.to(__type), __k_out.to(__type)
""")
# Tables of one column for each pair, by a function that turns the halves (gpt_oss).
HALVES = Pattern("""
    __cos = __cos.unsqueeze(__dim)
    __sin = __sin.unsqueeze(__dim)
    __q_out = __rotate(__q, __cos, __sin)
    __k_out = __rotate(__k, __cos, __sin)
    return __q_out, __k_out
""")
# (pattern, how q, k, cos and sin are passed, what the results are cast to; None: returned as they are)
FORMS: tuple[tuple[Pattern, tuple[str, str], tuple[str, str] | None], ...] = (
    (FULL, ("{}", "{}"), None),
    (PARTIAL, ("{}", "{}"), None),
    (PARTIAL_FIRST, ("{}", "{}"), None),
    (PARTIAL_IN_RETURN, ("{}", "{}"), None),
    (INDEXED, ("{}", "{}[{index}]"), None),
    (CAST, ("{}", "{}"), ("{q}.dtype", "{k}.dtype")),
    (IN_FP32, ("{}.float()", "{}"), ("{q}.dtype", "{q}.dtype")),
    (HALVES, ("{}", "{}"), None),
)
ROTATE_HALF = Pattern("""
    __a = __x[..., : __x.shape[-1] // 2]
    __b = __x[..., __x.shape[-1] // 2 :]
    return torch.cat((-__b, __a), dim=-1)
""")
TURN_HALVES = Pattern("""
    __a, __b = torch.chunk(__x, 2, dim=-1)
    __first = __a * __cos - __b * __sin
    __second = __b * __cos + __a * __sin
    return torch.cat((__first, __second), dim=-1)
""")
_ARGUMENTS = ("__q", "__k", "__cos", "__sin", "__dim")


@dataclass(frozen=True)
class Rope:
    """The five argument names, the rotating function, the five expressions to pass, the casts of the results and
    whether the tables are of halves; empty where the body is not one of ours.
    """

    arguments: tuple[str, ...] = ()
    rotate: str = ""
    passed: tuple[str, ...] = ()
    casts: tuple[str, ...] = ()
    halves: bool = False


def match(source: Source, function: Function) -> list[Site[Rope]]:
    """The module's own ``apply_rotary_pos_emb``."""
    if function.owner is not None or function.node.name.value != FUNCTION or not function.body:
        return []
    return [Site(function, function.body[0], _rope(function))]


def _rope(function: Function) -> Rope:
    for pattern, (tensor, table), casts in FORMS:
        found = pattern.match(function.body)
        if found is None:
            continue
        taken = (found[hole] for hole in (*_ARGUMENTS, "__rotate"))
        words = [node.value for node in taken if isinstance(node, cst.Name)]
        index = found.get("__index")
        if len(words) != 6 or not (index is None or isinstance(index, cst.Name)):
            return Rope()
        q, k, cos, sin, dim, rotate = words
        at = index.value if index is not None else ""
        passed = (tensor.format(q), tensor.format(k), table.format(cos, index=at), table.format(sin, index=at), dim)
        named = (q, k, cos, sin, dim, *((at,) if at else ()))
        cast = tuple(one.format(q=q, k=k) for one in casts or ())
        return Rope(named, rotate, passed, cast, pattern is HALVES)
    return Rope()


def guard(source: Source, site: Site[Rope]) -> str | None:
    """Decline other formulas, other argument lists, and a rotate function that is not rotate-half."""
    rope, function = site.found, site.function
    if not rope.arguments:
        return "the body is none of the rotate-half forms"
    if len(set(rope.arguments)) != len(rope.arguments) or not set(rope.arguments) <= set(function.parameters):
        return f"{', '.join(rope.arguments)} are not {len(rope.arguments)} parameters of the function"
    elsewhere = _dimension_that_the_op_lacks(source, rope.arguments[4])
    if elsewhere:
        return elsewhere
    rotate = source.function(rope.rotate)
    if rotate is None:
        return f"{rope.rotate} is not defined exactly once in this file"
    pattern, holes = (TURN_HALVES, ("__x", "__cos", "__sin")) if rope.halves else (ROTATE_HALF, ("__x",))
    found = pattern.match(rotate.body)
    if not found or tuple(source.code(found[hole]) for hole in holes) != rotate.parameters:
        return f"{rope.rotate} does not rotate the first half against the second"
    return None


def _dimension_that_the_op_lacks(source: Source, name: str) -> str | None:
    """The op takes tables [B, S, R] and heads in dimension 1 or 2. A call with another constant (pixtral's 0) means
    tables of another rank.
    """
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != FUNCTION:
            continue
        for keyword in node.keywords:
            given = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if keyword.arg == name and given is not None and given not in (1, 2):
                return f"line {node.lineno} calls it with {name}={given!r}"
    return None


def edit(source: Source, site: Site[Rope]) -> list[Edit]:
    """An early return before the first statement; with casts, the results get names first."""
    rope, function = site.found, site.function
    passed = ", ".join(rope.passed + ("halves=True",) * rope.halves)
    call, asked = f"_amd.apply_rope({passed})", f"{test(NAME)} and _amd.takes_rope({rope.rotate}, {passed})"
    anchor = source.before(function.body[0])
    if anchor is None:
        return []
    if not rope.casts:
        return [insertion(NAME, function, anchor, [f"if {asked}:", f"    return {call}"])]
    lines = [
        f"if {asked}:",
        f"    q_embed, k_embed = {call}",
        f"    return q_embed.to({rope.casts[0]}), k_embed.to({rope.casts[1]})",
    ]
    return [insertion(NAME, function, anchor, lines)]


RECIPE = Recipe(
    name=NAME,
    description=f"{FUNCTION}(q, k, cos, sin, ...) in a rotate-half form, full or partial",
    hint=re.compile(rf"def {FUNCTION}\("),
    match=match,
    guard=guard,
    edit=edit,
)
