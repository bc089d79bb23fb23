"""RMSNorm.forward: return the fused op early, keep the stock body below the guard.

Four numeric forms that differ in half precision, told apart by the body and never by a class name (amd_ops.norm has
their formulas): llama rounds before the weight, gemma's weight is an offset, fp32_weight rounds once at the end
(olmo2, gpt_oss, helium), t5 computes the variance alone in fp32. Anything else that normalises is left alone; a frozen
batch norm has none of these bodies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.layout import early_return
from rocm_overlay.patchgen.pattern import Bindings, Pattern, first_match
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
FP32_WEIGHT = (
    Pattern("""
    __dtype = __x.dtype
    __x = __x.to(torch.float32)
    __variance = __x.pow(2).mean(-1, keepdim=True)
    __x = __x * torch.rsqrt(__variance + self.__eps)
    return (self.__weight * __x).to(__dtype)
    """),
    Pattern("""
    __dtype = __x.dtype
    __x = __x.to(torch.float32)
    __variance = __x.pow(2).mean(-1, keepdim=True)
    __x = __x * torch.rsqrt(__variance + self.__eps)
    return (self.__weight.to(torch.float32) * __x).to(__dtype)
    """),
)
T5 = Pattern("""
    __variance = __x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    __x = __x * torch.rsqrt(__variance + self.__eps)
    if self.__weight.dtype in [torch.float16, torch.bfloat16]:
        __x = __x.to(self.__weight.dtype)
    return self.__weight * __x
""")
# Bodies that leave the normalisation itself to a method of the class.
WITH_HELPER = (
    (
        "gemma",
        Pattern("""
        __out = self.__norm(__x.float())
        __out = __out * (1.0 + self.__weight.float())
        return __out.type_as(__x)
        """),
    ),
    (
        "fp32_weight",
        Pattern("""
        __out = self.__norm(__x.float())
        __out = __out * self.__weight.float()
        return __out.type_as(__x)
        """),
    ),
    (
        "fp32_weight",
        Pattern("""
        __out = self.__norm(__x.float()) * self.__weight.float()
        return __out.type_as(__x)
        """),
    ),
    (
        "llama",
        Pattern("""
        __out = self.__norm(__x.float()).type_as(__x)
        return __out * self.__weight
        """),
    ),
)
HELPER = Pattern("""
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
    """Every ``forward`` of a class that is one of the forms, or nearly so."""
    if not function.is_method or function.node.name.value != "forward" or not function.body:
        return []
    norm = _plain(function) or _with_helper(source, function) or _near(source, function)
    return [Site(function, function.body[0], norm)] if norm else []


def _plain(function: Function) -> Norm | None:
    for form, patterns in (("llama", (LLAMA,)), ("fp32_weight", FP32_WEIGHT), ("t5", (T5,))):
        found = first_match(patterns, function.body)
        if found:
            return _norm(form, found, found)
    return None


def _with_helper(source: Source, function: Function) -> Norm | None:
    for form, pattern in WITH_HELPER:
        found = pattern.match(function.body)
        if not found:
            continue
        helper = source.function(_text(found["__norm"]), function.owner)
        inner = HELPER.match(helper.body) if helper else None
        if helper is None or inner is None or helper.parameters != ("self", _text(inner["__x"])):
            return Norm(None)
        return _norm(form, found, inner)
    return None


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
        return "the body is none of the four forms"
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
    description="a forward(self, x) whose whole body is one of the four forms of RMSNorm",
    hint=re.compile(r"rsqrt"),
    match=match,
    guard=guard,
    edit=edit,
)
