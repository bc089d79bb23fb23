"""Mixtures of experts: route the experts' loop to one op, behind a guard; the stock loop stays below it.

Three shapes. A block that softmaxes its router and loops over the experts that were hit (mixtral, qwen2_moe,
qwen3_moe): our op comes in front of the softmax and the block's own last statements are repeated behind it. A method
that only loops over experts, given ids and weights (deepseek_v3). And experts that are 3-D parameters with a clamped
gate (gpt_oss). What the experts are, is looked at when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import binds, names
from rocm_overlay.patchgen.layout import insertion, test
from rocm_overlay.patchgen.pattern import Bindings, Pattern
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source

from . import gating

NAME = "moe"
RESULT = "_amd_moe"

_HEAD = """
__w = F.softmax(__logits, dim=1, dtype=torch.float)
__w, __ids = torch.topk(__w, __k, dim=-1)
"""
_ALWAYS = "__w /= __w.sum(dim=-1, keepdim=True)\n"
_WHERE_ASKED = "if __renormalise:\n    __w /= __w.sum(dim=-1, keepdim=True)\n"
_REST = """
__w = __w.to(__h.dtype)
__out = torch.zeros((__b * __s, __d), dtype=__h.dtype, device=__h.device)
__mask = torch.nn.functional.one_hot(__ids, num_classes=__n).permute(2, 1, 0)
__hit = torch.greater(__mask.sum(dim=(-1, -2)), 0).nonzero()
for __e in __hit:
    __layer = self.__experts[__e]
    __idx, __top = torch.where(__mask[__e].squeeze(0))
    __state = __h[None, __top].reshape(-1, __d)
    __one = __layer(__state) * __w[__top, __idx, None]
    __out.index_add_(0, __top, __one.to(__h.dtype))
"""
SOFTMAX = (Pattern(_HEAD + _ALWAYS + _REST), Pattern(_HEAD + _WHERE_ASKED + _REST))
LOOP = Pattern("""
__out = torch.zeros_like(__h, dtype=__w.dtype)
__mask = torch.nn.functional.one_hot(__ids, num_classes=len(self.__experts))
__mask = __mask.permute(2, 0, 1)
for __e in range(len(self.__experts)):
    __layer = self.__experts[__e]
    __own = __mask[__e]
    __top, __idx = torch.where(__own)
    if __top.numel() > 0:
        __weight = __w[__top, __idx]
        __state = __h[__top]
        __one = __layer(__state)
        __part = __one * __weight.unsqueeze(-1)
        __out.index_add_(0, __top, __part)
return __out.type(__h.dtype)
""")
CLAMPED = Pattern("""
__batch = __h.shape[0]
__h = __h.reshape(-1, self.hidden_size)
__n = __scores.shape[1]
if __h.device.type == "cpu" or self.training:
    __out = torch.zeros_like(__h, dtype=__h.dtype, device=__h.device)
    with torch.no_grad():
        __mask = torch.nn.functional.one_hot(
            __ids, num_classes=__n + 1
        )
        __mask = __mask.permute(2, 1, 0)
        __hit = torch.greater(__mask.sum(dim=(-1, -2)), 0).nonzero()
    for __e in __hit[:]:
        __e = __e[0]
        if __e == __n:
            continue
        with torch.no_grad():
            __row, __top = torch.where(__mask[__e])
        __state = __h[__top]
        __both = __state @ self.gate_up_proj[__e] + self.gate_up_proj_bias[__e]
        __gate, __up = __both[..., ::2], __both[..., 1::2]
        __gate = __gate.clamp(min=None, max=self.limit)
        __up = __up.clamp(min=-self.limit, max=self.limit)
        __glu = __gate * torch.sigmoid(__gate * self.alpha)
        __mid = (__up + 1) * __glu
        __one = __mid @ self.down_proj[__e] + self.down_proj_bias[__e]
        __part = __one * __scores[__top, __e, None]
        __out.index_add_(0, __top, __part.to(__h.dtype))
    __out = __out.view(__batch, -1, self.hidden_size)
else:
    __h = __h.repeat(__n, 1)
    __h = __h.view(__n, -1, self.hidden_size)
    __both = torch.bmm(__h, self.gate_up_proj) + self.gate_up_proj_bias[..., None, :]
    __gate, __up = __both[..., ::2], __both[..., 1::2]
    __gate = __gate.clamp(min=None, max=self.limit)
    __up = __up.clamp(min=-self.limit, max=self.limit)
    __glu = __gate * torch.sigmoid(__gate * self.alpha)
    __out = torch.bmm(((__up + 1) * __glu), self.down_proj)
    __out = __out + self.down_proj_bias[..., None, :]
    __out = __out.view(__n, __batch, -1, self.hidden_size)
    __out = __out * __scores.transpose(0, 1).view(__n, __batch, -1)[..., None]
    __out = __out.sum(dim=0)
return __out
""")


@dataclass(frozen=True)
class Experts:
    """Where our call goes, the call, the names that the skipped statements set, and the statements behind them."""

    first: cst.BaseStatement
    call: str
    out: str
    inner: frozenset[str] = frozenset()
    tail: tuple[cst.BaseStatement, ...] = ()


def match(source: Source, function: Function) -> Iterator[Site[Experts]]:
    """The three shapes in a method; the first one anywhere among the method's own statements."""
    if not function.is_method or not function.body:
        return
    for pattern, call in ((LOOP, _loop), (CLAMPED, _clamped)):
        found = pattern.match(function.body)
        if found is not None:
            yield Site(function, function.body[0], Experts(function.body[0], call(source, found), ""))
            return
    for pattern in SOFTMAX:
        length = len(pattern.statements)
        for index in range(len(function.body) - length):
            found = pattern.match(function.body[index : index + length])
            if found is not None:
                skipped = function.body[index : index + length]
                yield Site(function, skipped[0], _softmax(source, found, skipped, function.body[index + length :]))


def _softmax(
    source: Source, found: Bindings, skipped: Sequence[cst.BaseStatement], tail: tuple[cst.BaseStatement, ...]
) -> Experts:
    renormalise = source.code(found["__renormalise"]) if "__renormalise" in found else "True"
    words = [source.code(found[hole]) for hole in ("__h", "__logits", "__k")]
    call = f"_amd.softmax_moe(self.{source.code(found['__experts'])}, {', '.join(words)}, {renormalise})"
    out = source.code(found["__out"])
    inner = frozenset().union(*(binds(statement) for statement in skipped)) - {out, source.code(found["__h"])}
    return Experts(skipped[0], call, out, inner, tail)


def _loop(source: Source, found: Bindings) -> str:
    h, ids, w = (source.code(found[hole]) for hole in ("__h", "__ids", "__w"))
    return f"_amd.moe_experts(self.{source.code(found['__experts'])}, {h}, {ids}, {w})"


def _clamped(source: Source, found: Bindings) -> str:
    h, ids, scores = (source.code(found[hole]) for hole in ("__h", "__ids", "__scores"))
    return f"_amd.clamped_experts(self, {h}, {ids}, {scores})"


def guard(source: Source, site: Site[Experts]) -> str | None:
    """Decline a tail that needs what the loop leaves behind, or that cannot be repeated line by line."""
    return unrepeatable(source, site.found, RESULT)


def unrepeatable(source: Source, found: Experts, result: str) -> str | None:
    """Say why the statements behind a site cannot be repeated behind a call whose result is called ``result``."""
    if re.search(rf"\b{result}\b", source.text):
        return f"the file already uses the name {result}"
    if not found.out:
        return None
    last = found.tail[-1] if found.tail else None
    if not isinstance(last, cst.SimpleStatementLine) or not isinstance(last.body[-1], cst.Return):
        return "the method does not end in a return"
    for statement in found.tail:
        if not isinstance(statement, cst.SimpleStatementLine) or "\n" in source.code(statement).strip():
            return f"line {source.line(statement)} is not one simple statement"
        used = found.inner & set(names(statement))
        if used:
            return f"line {source.line(statement)} reads {', '.join(sorted(used))}, which is left behind"
    return None


def edit(source: Source, site: Site[Experts]) -> list[Edit]:
    """The op behind a guard, and where it gave a result the method's own ending."""
    return in_front(NAME, RESULT, source, site)


def in_front(recipe: str, result: str, source: Source, site: Site[Experts]) -> list[Edit]:
    """Insert the site's call, its result called ``result``, in front of the statements that it stands for."""
    found = site.found
    anchor = source.before(found.first)
    if anchor is None:
        return []
    call = f"    {result} = {found.call}".splitlines()
    lines = [f"if {test(recipe)}:", *call, f"    if {result} is not None:"]
    if found.out:
        lines.append(f"        {found.out} = {result}")
        lines += [f"        {line}" for line in gating.repeated(source, found.tail)]
    else:
        lines.append(f"        return {result}")
    return [insertion(recipe, site.function, anchor, lines)]


RECIPE = Recipe(
    name=NAME,
    description="a loop over experts: softmax routed, given ids and weights, or 3-D parameters with a clamped gate",
    hint=re.compile(r"one_hot\("),
    match=match,
    guard=guard,
    edit=edit,
)
