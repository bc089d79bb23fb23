"""Experts that are 3-D parameters, as transformers 5 has them: a call of the module through amd_ops.

``self.experts(hidden, ids, weights)`` becomes a conditional expression, where the class in ``self.experts`` has a loop
that we know. The loop itself is only marked (forms.py): transformers chooses another implementation in front of it.
Which one was chosen, and what the parameters really are, is looked at when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import value_of
from rocm_overlay.patchgen.layout import conditional
from rocm_overlay.patchgen.modules import built_as
from rocm_overlay.patchgen.pattern import Pattern
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source, blocks

NAME = "experts"

GATED = Pattern("""
__out = torch.zeros_like(__h)
with torch.no_grad():
    __mask = torch.nn.functional.one_hot(__ids, num_classes=self.num_experts + 1)
    __mask = __mask.permute(2, 1, 0)
    __hit = torch.greater(__mask.sum(dim=(-1, -2)), 0).nonzero()
for __e in __hit:
    __e = __e[0]
    if __e == self.num_experts:
        continue
    __top, __rows = torch.where(__mask[__e])
    __state = __h[__rows]
    __gate, __up = nn.functional.linear(__state, self.gate_up_proj[__e]).chunk(2, dim=-1)
    __mid = self.act_fn(__gate) * __up
    __mid = nn.functional.linear(__mid, self.down_proj[__e])
    __mid = __mid * __w[__rows, __top, None]
    __out.index_add_(0, __rows, __mid.to(__out.dtype))
return __out
""")
CLAMPED = Pattern("""
__out = torch.zeros_like(__h, dtype=__h.dtype, device=__h.device)
with torch.no_grad():
    __mask = torch.nn.functional.one_hot(__ids, num_classes=self.num_experts)
    __mask = __mask.permute(2, 1, 0)
    __hit = torch.greater(__mask.sum(dim=(-1, -2)), 0).nonzero()
for __e in __hit:
    __e = __e[0]
    if __e == self.num_experts:
        continue
    __top, __rows = torch.where(__mask[__e])
    __state = __h[__rows]
    __both = __state @ self.gate_up_proj[__e] + self.gate_up_proj_bias[__e]
    __mid = self._apply_gate(__both)
    __one = __mid @ self.down_proj[__e] + self.down_proj_bias[__e]
    __part = __one * __w[__rows, __top, None]
    __out.index_add_(0, __rows, __part.to(__h.dtype))
return __out
""")
CLAMPED_GATE = Pattern("""
__gate, __up = __both[..., ::2], __both[..., 1::2]
__gate = __gate.clamp(min=None, max=self.limit)
__up = __up.clamp(min=-self.limit, max=self.limit)
__glu = __gate * torch.sigmoid(__gate * self.alpha)
__mid = (__up + 1) * __glu
return __mid
""")

Found = tuple[str, tuple[str, ...]]


def form(source: Source, function: Function) -> str | None:
    """Name the formula of an experts' forward whose parameters are (hidden, ids, weights): ``gated`` or ``clamped``."""
    if len(function.parameters) != 4:
        return None
    for name, pattern in (("gated", GATED), ("clamped", CLAMPED)):
        found = pattern.match(function.body)
        given = found and tuple(source.code(found[hole]) for hole in ("__h", "__ids", "__w"))
        if given == function.parameters[1:]:
            gate = source.function("_apply_gate", function.owner)
            known = gate is None if name == "gated" else gate is not None and CLAMPED_GATE.match(gate.body) is not None
            return name if known else None
    return None


def match(source: Source, function: Function) -> Iterator[Site[Found]]:
    """Every value ``self.experts(a, b, c)`` in a method, also with methods of the result called on it."""
    if not function.is_method:
        return
    for block in blocks(function):
        for statement in block.statements:
            node = value_of(statement)
            while node is not None and not (found := _call(source, node)):
                node = _receiver(node)
            if node is not None and found:
                yield Site(function, node, found)


def _call(source: Source, node: cst.BaseExpression) -> Found | None:
    """(attribute, arguments) of ``self.<attribute>(a, b, c)`` with three plain names."""
    if not isinstance(node, cst.Call) or not isinstance(node.func, cst.Attribute) or len(node.args) != 3:
        return None
    owner = node.func.value
    if not isinstance(owner, cst.Name) or owner.value != "self" or node.func.attr.value != NAME:
        return None
    if any(one.keyword or one.star or not isinstance(one.value, cst.Name) for one in node.args):
        return None
    return node.func.attr.value, tuple(source.code(one.value) for one in node.args)


def _receiver(node: cst.BaseExpression) -> cst.BaseExpression | None:
    """``x`` of ``x.method(...)``."""
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
        return node.func.value
    return None


def guard(source: Source, site: Site[Found]) -> str | None:
    """Decline experts of a class whose loop is another one or stands in another file."""
    attribute = site.found[0]
    built = built_as(source, site.function, attribute)
    if built is None:
        return f"what self.{attribute} is built as is not to be seen"
    near = source.functions_near(re.compile(rf"^class {re.escape(built)}\b", re.MULTILINE))
    forward = next((one for one in near if one.qualname == f"{built}.forward"), None)
    if forward is None or form(source, forward) is None:
        return f"the loop of {built} is not one that we know"
    return None


def edit(source: Source, site: Site[Found]) -> list[Edit]:
    """A conditional expression."""
    attribute, arguments = site.found
    node = site.node
    assert isinstance(node, cst.BaseExpression)
    call = f"_amd.stacked_experts(self.{attribute}, {', '.join(arguments)})"
    return [conditional(NAME, source, site.function, node, call)]


RECIPE = Recipe(
    name=NAME,
    description="self.experts(hidden, ids, weights), experts being 3-D parameters with a loop of a known form",
    hint=re.compile(r"\bself\.experts\("),
    match=match,
    guard=guard,
    edit=edit,
)
