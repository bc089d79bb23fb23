"""RMSNorm.forward: return the fused op early, keep the stock body below the guard.

Two numeric forms, told apart by the body and never by a class name: ``weight * x.to(dtype)`` (llama) and
``(x * (1 + weight)).to(dtype)`` computed in fp32 (gemma). Anything else that normalises is left alone; a frozen batch
norm has neither body.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.layout import early_return
from rocm_overlay.patchgen.pattern import Bindings, Pattern
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source

NAME = "rms_norm"

LLAMA = Pattern("""
    __dtype = __x.dtype
    __x = __x.to(torch.float32)
    __variance = __x.pow(2).mean(-1, keepdim=True)
    __x = __x * torch.rsqrt(__variance + self.__eps)
    return self.__weight * __x.to(__dtype)
""")
GEMMA = Pattern("""
    __out = self.__norm(__x.float())
    __out = __out * (1.0 + self.__weight.float())
    return __out.type_as(__x)
""")
GEMMA_NORM = Pattern("""
    return __x * torch.rsqrt(__x.pow(2).mean(-1, keepdim=True) + self.__eps)
""")


@dataclass(frozen=True)
class Norm:
    """What was read off the body; ``form`` is None for a body that is near but not one of ours."""

    form: str | None
    x: str = ""
    weight: str = ""
    eps: str = ""


def match(source: Source, function: Function) -> list[Site[Norm]]:
    """Every ``forward`` of a class that is one of the two forms, or nearly so."""
    if not function.is_method or function.node.name.value != "forward" or not function.body:
        return []
    norm = _llama(function) or _gemma(source, function) or _near(source, function)
    return [Site(function, function.body[0], norm)] if norm else []


def _llama(function: Function) -> Norm | None:
    found = LLAMA.match(function.body)
    return _norm("llama", found, found) if found else None


def _gemma(source: Source, function: Function) -> Norm | None:
    found = GEMMA.match(function.body)
    if not found:
        return None
    helper = source.function(_text(found["__norm"]), function.owner)
    inner = GEMMA_NORM.match(helper.body) if helper else None
    if helper is None or inner is None or helper.parameters != ("self", _text(inner["__x"])):
        return Norm(None)
    return _norm("gemma", found, inner)


def _norm(form: str, outer: Bindings, inner: Bindings) -> Norm | None:
    if not isinstance(outer["__x"], cst.Name):
        return None
    return Norm(form, outer["__x"].value, _text(outer["__weight"]), _text(inner["__eps"]))


def _near(source: Source, function: Function) -> Norm | None:
    owner = function.owner
    if owner is None or "RMSNorm" not in owner.name.value:
        return None
    return Norm(None)


def _text(node: cst.CSTNode) -> str:
    return node.value if isinstance(node, cst.Name) else ""


def guard(source: Source, site: Site[Norm]) -> str | None:
    """Decline other numeric forms, and bodies whose input is not the method's only argument."""
    norm = site.found
    if norm.form is None:
        return "the body is neither weight * x.to(dtype) nor x * (1 + weight) in fp32"
    if site.function.parameters != ("self", norm.x):
        return f"forward takes ({', '.join(site.function.parameters)}), expected (self, {norm.x})"
    if len({norm.weight, norm.eps}) != 2:
        return "weight and eps are the same attribute"
    return None


def edit(source: Source, site: Site[Norm]) -> list[Edit]:
    """An early return before the first statement."""
    norm = site.found
    form = "" if norm.form == "llama" else f', form="{norm.form}"'
    call = f"_amd.rms_norm({norm.x}, self.{norm.weight}, self.{norm.eps}{form})"
    return early_return(NAME, source, site.function, call)


RECIPE = Recipe(
    name=NAME,
    description="a forward(self, x) whose whole body is the llama or the gemma RMSNorm",
    hint=re.compile(r"rsqrt"),
    match=match,
    guard=guard,
    edit=edit,
)
