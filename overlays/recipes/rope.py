"""apply_rotary_pos_emb: return the fused op early, keep the stock body below the guard.

Only the rotate-half layout (first half with second half), full or on the leading part of the head. The function's own
``rotate_half`` is read to be sure: several models have one of that name that interleaves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.layout import early_return
from rocm_overlay.patchgen.pattern import Pattern, first_match
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
ROTATE_HALF = Pattern("""
    __a = __x[..., : __x.shape[-1] // 2]
    __b = __x[..., __x.shape[-1] // 2 :]
    return torch.cat((-__b, __a), dim=-1)
""")
_ARGUMENTS = ("__q", "__k", "__cos", "__sin", "__dim")


@dataclass(frozen=True)
class Rope:
    """The five argument names and the rotating function; empty where the body is not one of ours."""

    arguments: tuple[str, ...] = ()
    rotate: str = ""


def match(source: Source, function: Function) -> list[Site[Rope]]:
    """The module's own ``apply_rotary_pos_emb``."""
    if function.owner is not None or function.node.name.value != FUNCTION or not function.body:
        return []
    found = first_match((FULL, PARTIAL), function.body)
    rope = Rope()
    if found:
        taken = [found[hole] for hole in (*_ARGUMENTS, "__rotate")]
        words = tuple(node.value for node in taken if isinstance(node, cst.Name))
        rope = Rope(words[:5], words[5]) if len(words) == 6 else rope
    return [Site(function, function.body[0], rope)]


def guard(source: Source, site: Site[Rope]) -> str | None:
    """Decline other formulas, other argument lists, and a rotate function that is not rotate-half."""
    rope, function = site.found, site.function
    if not rope.arguments:
        return "the body is neither the full nor the partial rotate-half form"
    if len(set(rope.arguments)) != 5 or not set(rope.arguments) <= set(function.parameters):
        return f"{', '.join(rope.arguments)} are not five parameters of the function"
    rotate = source.function(rope.rotate)
    if rotate is None:
        return f"{rope.rotate} is not defined exactly once in this file"
    found = ROTATE_HALF.match(rotate.body)
    if not found or not isinstance(found["__x"], cst.Name) or rotate.parameters != (found["__x"].value,):
        return f"{rope.rotate} does not rotate the first half against the second"
    return None


def edit(source: Source, site: Site[Rope]) -> list[Edit]:
    """An early return before the first statement."""
    return early_return(NAME, source, site.function, f"_amd.apply_rope({', '.join(site.found.arguments)})")


RECIPE = Recipe(
    name=NAME,
    description=f"{FUNCTION}(q, k, cos, sin, ...) in the rotate-half form, full or partial",
    hint=re.compile(rf"def {FUNCTION}\("),
    match=match,
    guard=guard,
    edit=edit,
)
