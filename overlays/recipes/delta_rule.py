"""Linear attention by a gated delta rule (qwen3_next), one token at a time: the convolution, the rule and the norm
behind it are a call each.

The convolution and the norm are functions of their own: our call comes first in them, and where it gave no result
stock's body runs. The rule stands in the middle of a method, in front of which decay and learning rate are made and
heads are repeated: our call takes what these are made of, on the branch where stock moves the rule on by one token.
Which roundings are stock's is read off the file's own function in torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import assignment, names
from rocm_overlay.patchgen.layout import insertion, test, unless
from rocm_overlay.patchgen.pattern import Bindings, Pattern
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source

NAME = "delta_rule"
RESULT = "_amd_delta"
STEP = "_amd_step"

_CONV = """
_, __size, __length = __x.shape
__width = __state.shape[-1]
__new = torch.cat([__state, __x], dim=-1).to(__weight.dtype)
__state.copy_(__new[:, :, -__width:])
__out = F.conv1d(__new, __weight.unsqueeze(1), __bias, padding=0, groups=__size)
"""
CONV = (
    Pattern(f"{_CONV}__out = F.silu(__out[:, :, -__length:])\n__out = __out.to(__x.dtype)\nreturn __out"),
    Pattern(f"""{_CONV}
__out = __out[:, :, -__length:]
if __activation is not None:
    __out = ACT2FN[__activation](__out)
return __out.to(__x.dtype)
"""),
)
_NORM = """
__dtype = __x.dtype
__x = __x.to(torch.float32)
__variance = __x.pow(2).mean(-1, keepdim=True)
__x = __x * torch.rsqrt(__variance + self.__eps)
__x = self.__weight * __x.to(__dtype)
__x = __x * {activation}(__gate.to(torch.float32))
return __x.to(__dtype)
"""
NORM = (
    Pattern(_NORM.format(activation="F.silu")),
    Pattern(_NORM.format(activation="ACT2FN[self.__activation]")),
)
_GATES = """
__beta = __b.sigmoid()
__g = -self.__a_log.float().exp() * F.softplus(__a.float() + self.__dt_bias)
"""
EARLY_SITE = Pattern(f"""{_GATES}
if self.__heads // self.__shared > 1:
    __q = __q.repeat_interleave(self.__heads // self.__shared, dim=2)
    __k = __k.repeat_interleave(self.__heads // self.__shared, dim=2)
if not __known:
    __out, __last = self.__chunk(
        __q, __k, __v, g=__g, beta=__beta, initial_state=None, output_final_state=__cache is not None,
        use_qk_l2norm_in_kernel=True,
    )
else:
    __out, __last = self.__rule(
        __q, __k, __v, g=__g, beta=__beta, initial_state=__state, output_final_state=__cache is not None,
        use_qk_l2norm_in_kernel=True,
    )
""")
_CALL = """(
        __q, __k, __v, __g_word=__g, __beta_word=__beta, __state_word=__state, __final=__cache is not None,
        __unit_word=True, __packed_word=__words.pop("cu_seq_lens_q", None), **__words,
    )
"""
LATE_SITE = Pattern(f"""{_GATES}
if __state is not None and __length == 1:
    __out, __last = __rule{_CALL}
else:
    __out, __last = __chunk{_CALL}
""")
_UNIT = """
if __unit_word:
    __q = __unit(__q, dim=-1, eps=1e-6)
    __k = __unit(__k, dim=-1, eps=1e-6)
"""
EARLY = Pattern(f"""
__dtype = __q.dtype{_UNIT}
__q, __k, __v, __beta_word, __g_word = [
    __one.transpose(1, 2).contiguous().to(torch.float32) for __one in (__q, __k, __v, __beta_word, __g_word)
]
__batch, __heads, __length, __size = __k.shape
__columns = __v.shape[-1]
__scale = 1 / (__q.shape[-1] ** 0.5)
__q = __q * __scale
__out = torch.zeros(__batch, __heads, __length, __columns).to(__v)
__last = (
    torch.zeros(__batch, __heads, __size, __columns).to(__v)
    if __state_word is None
    else __state_word.to(__v)
)
for __i in range(__length):
    __q_t = __q[:, :, __i]
    __k_t = __k[:, :, __i]
    __v_t = __v[:, :, __i]
    __g_t = __g_word[:, :, __i].exp().unsqueeze(-1).unsqueeze(-1)
    __beta_t = __beta_word[:, :, __i].unsqueeze(-1)
    __last = __last * __g_t
    __memory = (__last * __k_t.unsqueeze(-1)).sum(dim=-2)
    __delta = (__v_t - __memory) * __beta_t
    __last = __last + __k_t.unsqueeze(-1) * __delta.unsqueeze(-2)
    __out[:, :, __i] = (__last * __q_t.unsqueeze(-1)).sum(dim=-2)
if not __final:
    __last = None
__out = __out.transpose(1, 2).contiguous().to(__dtype)
return __out, __last
""")
LATE = Pattern(f"""
__dtype = __q.dtype
__batch, __length, __shared, __size = __k.shape
__heads, __columns = __v.shape[-2:]
__decay = __g_word
if __shared != __heads:
    __q = __q.repeat_interleave(__heads // __shared, dim=2)
    __k = __k.repeat_interleave(__heads // __shared, dim=2)
__q, __k, __v, __beta_word, __decay = [
    __one.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    for __one in (__q, __k, __v, __beta_word, __decay)
]{_UNIT}
__q = __q / (__q.shape[-1] ** 0.5)
if __state_word is None:
    __shape = (__batch, __heads, __size, __columns)
    __last = torch.zeros(__shape, dtype=__v.dtype, device=__v.device)
else:
    __last = __state_word.to(__v)
__out = torch.zeros_like(__v)
for __i in range(__length):
    __q_t, __k_t, __v_t = __q[:, :, __i], __k[:, :, __i], __v[:, :, __i]
    __decay_t = __decay[:, :, __i].exp()[..., None, None]
    __last = __last * __decay_t
    __beta_t = __beta_word[:, :, __i].unsqueeze(-1)
    __memory = (__last * __k_t.unsqueeze(-1)).sum(dim=-2)
    __delta = (__v_t - __memory) * __beta_t
    __last = __last + __k_t.unsqueeze(-1) * __delta.unsqueeze(-2)
    __out[:, :, __i] = (__last * __q_t.unsqueeze(-1)).sum(dim=-2)
__last = None if not __final else __last
__out = __out.transpose(1, 2).contiguous().to(__dtype)
return __out, __last
""")
UNIT = Pattern("""
__inv = torch.rsqrt((__x * __x).sum(dim=__dim, keepdim=True) + __eps)
return __x * __inv
""")
_ORDER = ("__q", "__k", "__v", "__g_word", "__beta_word", "__state_word", "__final", "__unit_word")
_RULE = re.compile(r"\bdelta_rule\b|_delta_rule\(")


@dataclass(frozen=True)
class Found:
    """What holes took; the statements of a rule's site, and what is done behind them."""

    kind: str
    bindings: Bindings
    statements: tuple[cst.BaseStatement, ...] = ()
    tail: tuple[cst.BaseStatement, ...] = ()


def match(source: Source, function: Function) -> Iterator[Site[Found]]:
    """A function that is the convolution, a method that is the norm, and the statements around a rule."""
    if not function.body:
        return
    for kind, patterns in (("conv", CONV), ("norm", NORM)):
        if (kind == "norm") is not function.is_method:
            continue
        for pattern in patterns:
            found = pattern.match(function.body)
            if found is not None:
                yield Site(function, function.body[0], Found(kind, found))
    for kind, pattern in (("early", EARLY_SITE), ("late", LATE_SITE)) if function.is_method else ():
        length = len(pattern.statements)
        for index in range(len(function.body) - length + 1):
            statements = function.body[index : index + length]
            found = pattern.match(statements)
            if found is not None:
                yield Site(function, statements[0], Found(kind, found, statements, function.body[index + length :]))


def guard(source: Source, site: Site[Found]) -> str | None:
    """Decline a rule whose own function in torch is not known, and what is used behind the call that replaces it."""
    found, own = site.found, site.function.parameters
    if found.kind in ("conv", "norm"):
        holes = ("__x", "__state", "__weight", "__bias", "__activation") if found.kind == "conv" else ("__x", "__gate")
        taken = [source.code(found.bindings[hole]) for hole in holes if hole in found.bindings]
        missing = [name for name in taken if name not in own]
        return f"{', '.join(missing)} is no parameter" if missing else None
    if _rule(source, found) is None:
        return "the file has no function in torch that we know for this rule"
    made = {source.code(found.bindings[hole]) for hole in ("__beta", "__g", "__q", "__k")}
    later = made & {name for statement in found.tail for name in names(statement)}
    return f"{', '.join(sorted(later))} is used later" if later else None


def _rule(source: Source, found: Found) -> str | None:
    """The name of the file's own function in torch whose roundings are those of the site's form."""
    pattern = EARLY if found.kind == "early" else LATE
    for function in source.functions_near(_RULE):
        if function.owner is not None:
            continue
        body = pattern.match(function.body)
        if body is None or not _taken_in_order(source, function, body) or not _of_unit_length(source, body):
            continue
        if found.kind == "early":
            return function.node.name.value
        words = ("__g_word", "__beta_word", "__state_word", "__final", "__unit_word")
        if source.code(found.bindings["__rule"]) == function.node.name.value and all(
            source.code(found.bindings[word]) == source.code(body[word]) for word in words
        ):
            return function.node.name.value
    return None


def _taken_in_order(source: Source, function: Function, body: Bindings) -> bool:
    return function.parameters[: len(_ORDER)] == tuple(source.code(body[hole]) for hole in _ORDER)


def _of_unit_length(source: Source, body: Bindings) -> bool:
    """Whether what brings heads to unit length is the file's function that does."""
    unit = source.function(source.code(body["__unit"]))
    inner = None if unit is None else UNIT.match(unit.body)
    return (
        unit is not None
        and inner is not None
        and unit.parameters == tuple(source.code(inner[hole]) for hole in ("__x", "__dim", "__eps"))
    )


def edit(source: Source, site: Site[Found]) -> list[Edit]:
    """A call first in a function, or in front of the statements of a rule, which then run where it gave nothing."""
    found = site.found
    holes = {hole: source.code(node) for hole, node in found.bindings.items()}
    if found.kind == "conv":
        words = [holes[hole] for hole in ("__x", "__state", "__weight", "__bias")]
        return _first(source, site, f"causal_conv({', '.join(words)}, {holes.get('__activation', repr('silu'))})")
    if found.kind == "norm":
        activation = f"self.{holes['__activation']}" if "__activation" in holes else '"silu"'
        own = f"self.{holes['__weight']}, self.{holes['__eps']}"
        return _first(source, site, f"gated_norm({holes['__x']}, {holes['__gate']}, {own}, {activation})")
    return _around(source, site, holes)


def _first(source: Source, site: Site[Found], call: str) -> list[Edit]:
    anchor = source.before(site.function.body[0])
    if anchor is None:
        return []
    call = call.replace("'", '"')
    lines = [
        f"if {test(NAME)}:",
        f"    {STEP} = _amd.{call}",
        f"    if {STEP} is not None:",
        f"        return {STEP}",
    ]
    return [insertion(NAME, site.function, anchor, lines)]


def _around(source: Source, site: Site[Found], holes: dict[str, str]) -> list[Edit]:
    found, function = site.found, site.function
    first, last = source.before(found.statements[0]), source.before(found.statements[-1])
    if first is None or last is None:
        return []
    early = found.kind == "early"
    where = holes["__known"] if early else f"{holes['__state']} is not None and {holes['__length']} == 1"
    rule, own = f"self.{holes['__rule']}" if early else holes["__rule"], _rule(source, found)
    heads = ", ".join(holes[hole] for hole in ("__q", "__k", "__v", "__b", "__a"))
    ends = [rule, str(own), str(early), *([] if early else [holes["__words"]])]
    lines = [
        f"{RESULT} = None",
        f"if {test(NAME)} and {where}:",
        f"    {RESULT} = _amd.gated_delta_rule(",
        f"        {heads}, self.{holes['__a_log']}, self.{holes['__dt_bias']}, {holes['__state']},",
        f"        {', '.join(ends)},",
        "    )",
    ]
    taken = [f"if {RESULT} is not None:", f"    {holes['__out']}, {holes['__last']} = {RESULT}"]
    edits = [insertion(NAME, function, first, lines), insertion(NAME, function, last, taken)]
    for statement in found.statements[:2]:
        assigned = assignment(statement)
        assert assigned is not None
        edits += unless(NAME, source, function, assigned[1], RESULT, "None")
    for statement in found.statements[2:-1]:
        assert isinstance(statement, cst.If)
        start = source.span(statement.test)[0]
        edits.append(Edit(start, start, f"{RESULT} is None and ".encode(), NAME, function.qualname))
    start = source.span(found.statements[-1])[0]
    return [*edits, Edit(start, start, b"el", NAME, function.qualname)]


RECIPE = Recipe(
    name=NAME,
    description="linear attention by a gated delta rule, one token: its convolution, its rule, its norm",
    hint=re.compile(r"F\.conv1d\(|F\.softplus\(|\* F\.silu\(|ACT2FN\["),
    match=match,
    guard=guard,
    edit=edit,
)
