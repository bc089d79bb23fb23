"""Routers: the choice of experts and their weights by one call, behind a guard; stock's statements stay below it.

Three forms. Softmax over all experts, then the k largest (transformers 5's mixtral and qwen3_moe; blocks of 4 that
softmax in front of their loop are the moe recipe's). The k largest, then their softmax (gpt_oss; granitemoe of
transformers 5, whose logits are in fp32 and weights are not). Sigmoid scores with a correction and groups of experts
(deepseek_v3), where the choice may be a method of its own. Our call comes in front of the first statement of the form,
and what the method does behind it is repeated after the call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import binds, names
from rocm_overlay.patchgen.pattern import Bindings, Pattern
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source

from .moe import Experts, in_front, unrepeatable

NAME = "router"
RESULT = "_amd_route"

_HEADS = (
    "__p = torch.nn.functional.softmax(__l.float(), dim=-1)\n",
    "__p = torch.nn.functional.softmax(__l, dtype=torch.float, dim=-1)\n",
)
_TOP = "__v, __ids = torch.topk(__p, __k, dim=-1)\n"
_SUMS = {
    "True": "__v /= __v.sum(dim=-1, keepdim=True)\n",
    "": "if __renormalise:\n    __v /= __v.sum(dim=-1, keepdim=True)\n",
    "False": "",
}
"""The statement that renormalises, by the condition under which it does; "" is one that stands in the code."""
_CASTS = ("__v = __v.to(__dtype)\n", "")
SOFTMAX = tuple(
    (renormalise, Pattern(head + _TOP + total + cast))
    for cast in _CASTS
    for renormalise, total in _SUMS.items()
    for head in _HEADS
)
"""The longest forms first: a shorter one may be the beginning of a longer one."""
SPREAD = Pattern("""
__v, __ids = torch.topk(__l, __k, dim=-1)
__v = torch.nn.functional.softmax(__v, dim=1, dtype=__v.dtype)
__w = torch.zeros_like(__l).scatter_(1, __ids, __v)
""")
CHOSEN = Pattern("""
__v, __ids = torch.topk(__l, __k, dim=-1)
__w = torch.nn.functional.softmax(__v, dim=1, dtype=__v.dtype)
""")
CAST = Pattern("""
__v, __ids = __l.topk(__k, dim=-1)
__w = torch.softmax(__v, dim=-1).type_as(__like)
""")
_CHOICE = """
__sums = (
    __c.view(-1, __groups, __n // __groups)
    .topk(2, dim=-1)[0]
    .sum(dim=-1)
)
__group = torch.topk(__sums, k=__kept, dim=-1, sorted=False)[1]
__gmask = torch.zeros_like(__sums)
__gmask.scatter_(1, __group, 1)
__mask = (
    __gmask.unsqueeze(-1)
    .expand(-1, __groups, __n // __groups)
    .reshape(-1, __n)
)
__c = __c.masked_fill(~__mask.bool(), {fill})
__ids = torch.topk(__c, k=__k, dim=-1, sorted=False)[1]
"""
_LOGITS = "__l = F.linear(__h.type(torch.float32), __weight.type(torch.float32))\n__s = __l.sigmoid()\n"
_WEIGHTS = """
__w = __s.gather(1, __ids)
if __renormalise:
    __sum = __w.sum(dim=-1, keepdim=True) + 1e-20
    __w /= __sum
__w = __w * __scale
"""
_NOTHING, _ZERO = 'float("-inf")', "0.0"
GROUPED = Pattern(f"{_LOGITS}__c = __s + __bias{_CHOICE.format(fill=_NOTHING)}{_WEIGHTS.lstrip()}")
CALLED = Pattern(f"{_LOGITS}__ids = self.__choose(__s){_WEIGHTS}")
METHOD = Pattern(f"__c = __s.view(-1, __n) + __bias.unsqueeze(0){_CHOICE.format(fill=_ZERO)}return __ids")

Made = tuple[str, tuple[str, ...]]
"""Our call, and the names that take its results."""


def match(source: Source, function: Function) -> Iterator[Site[Experts]]:
    """The first form that a method's own statements have."""
    if not function.is_method or not function.body:
        return
    forms: list[tuple[Pattern, Callable[[Source, Function, Bindings], Made | None]]] = [
        *((pattern, partial(_softmax, renormalise)) for renormalise, pattern in SOFTMAX),
        (SPREAD, partial(_chosen, True)),
        (CHOSEN, partial(_chosen, False)),
        (CAST, partial(_chosen, False)),
        (GROUPED, _grouped),
        (CALLED, _called),
    ]
    for pattern, call in forms:
        length = len(pattern.statements)
        for index in range(len(function.body) - length + 1):
            skipped = function.body[index : index + length]
            found = pattern.match(skipped)
            made = None if found is None else call(source, function, found)
            if made is not None:
                yield Site(function, skipped[0], _site(made, skipped, function.body[index + length :]))
                return


def _site(made: Made, skipped: Sequence[cst.BaseStatement], tail: tuple[cst.BaseStatement, ...]) -> Experts:
    call, outs = made
    inner = frozenset().union(*(binds(statement) for statement in skipped)) - set(outs)
    return Experts(skipped[0], call, ", ".join(outs), inner, tail)


def _words(source: Source, found: Bindings, *holes: str) -> list[str]:
    return [source.code(found[hole]) for hole in holes]


def _softmax(renormalise: str, source: Source, function: Function, found: Bindings) -> Made | None:
    own = _words(source, found, "__p", "__v", "__ids")
    dtype = found.get("__dtype")
    if dtype is not None and set(own) & set(names(dtype)):
        return None
    condition = renormalise or source.code(found["__renormalise"])
    rounded = "torch.float32" if dtype is None else source.code(dtype)
    words = [*_words(source, found, "__l", "__k"), condition, rounded]
    return f"_amd.softmax_router({', '.join(words)})", (own[1], own[2])


def _chosen(spread: bool, source: Source, function: Function, found: Bindings) -> Made | None:
    words = [*_words(source, found, "__l", "__k"), str(spread)]
    weights, ids = _words(source, found, "__w", "__ids")
    like = found.get("__like")
    if like is not None:
        if not isinstance(like, cst.Name) or like.value in (weights, ids, source.code(found["__v"])):
            return None
        words.append(f"{like.value}.dtype")
    return f"_amd.top_k_router({', '.join(words)})", (weights, ids)


def _grouped(source: Source, function: Function, found: Bindings) -> Made:
    return _by_groups(source, found, found, _NOTHING)


def _called(source: Source, function: Function, found: Bindings) -> Made | None:
    """The choice is a method of the class, which must be there."""
    name = source.code(found["__choose"])
    method = source.function(name, function.owner)
    choice = None if method is None else METHOD.match(method.body)
    if method is None or choice is None or method.parameters != ("self", source.code(choice["__s"])):
        return None
    return _by_groups(source, found, choice, _ZERO, f", self.{name}")


def _by_groups(source: Source, found: Bindings, choice: Bindings, fill: str, choose: str = "") -> Made:
    """In three lines: what the choice is made of, among how many, and what becomes of the weights."""
    first = _words(source, found, "__h", "__weight") + _words(source, choice, "__bias")
    second = _words(source, choice, "__k", "__groups", "__kept")
    third = [*_words(source, found, "__renormalise", "__scale"), fill]
    lines = ",\n        ".join(", ".join(words) for words in (first, second, third))
    logits, weights, ids = _words(source, found, "__l", "__w", "__ids")
    return f"_amd.grouped_router(\n        {lines}{choose},\n    )", (logits, weights, ids)


def guard(source: Source, site: Site[Experts]) -> str | None:
    """Decline an ending that needs what the skipped statements leave behind, or that cannot be repeated."""
    return unrepeatable(source, site.found, RESULT)


def edit(source: Source, site: Site[Experts]) -> list[Edit]:
    """The call behind a guard, and where it gave a result the method's own ending."""
    return in_front(NAME, RESULT, source, site)


RECIPE = Recipe(
    name=NAME,
    description="a router: softmax and top-k, top-k and softmax, or sigmoid scores and top-k in groups",
    hint=re.compile(r"\btopk\("),
    match=match,
    guard=guard,
    edit=edit,
)
