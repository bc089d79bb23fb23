"""A decoder's layer loop: ``for layer in self.layers[: n]`` may run a plan of all its layers (amd_ops/plans).

    for layer in self.layers[: n]: h = layer(h, ...)       for layer in (_amd.planned(self, self.layers, n) ...): ...

A plan replaces whole layers, so it must know what they compute. The forwards of the two classes that a loop runs
through are marked where every statement of them is of a known form:

    forward._amd_decoder = "keep input_layernorm @self_attn add keep post_attention_layernorm mlp add", forward
    forward._amd_attention = apply_rotary_pos_emb, "head norms", "sin cos cache_position", forward

The first is the layer as a program over h and the residual: ``keep`` (the residual is h), ``@x`` (h is self.x's
attention), ``y?a:b@x`` (the same, whose tables are the argument a where self.x.y is true, else b), ``x`` (h is
self.x(h)), ``*x`` and ``?x`` (the next add takes h * self.x, or self.x(h) of a dropout), ``add`` (h is the residual +
h), ``tuple`` (what is returned is (h,)). The second names the rotation, what happens to q and k before it, and the
words that the cache's update is given. Both hold the very function that they describe: whoever wraps it is seen.

A loop may also keep the hidden states and the weights that it was asked for. Where it keeps hidden states it runs
through its layers; for weights the plan declines by itself, since each layer is asked for them.
"""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import walk
from rocm_overlay.patchgen.layout import conditional
from rocm_overlay.patchgen.pattern import first_match
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source

from . import rope
from .forms import Mark, behind

NAME = "plan"
_PROGRAM, _ATTENTION = "_amd_decoder", "_amd_attention"
_LONGEST = 80
_WORDS = ("hidden_states", "position_embeddings")
RUNS_WITH = frozenset(
    """
    attention_mask position_embeddings position_ids past_key_values past_key_value cache cache_position use_cache
    """.split()  # noqa: SIM905 - as amd_ops.plans.WORDS, which it is: whatever else a layer is asked for ends its plan
)

_START = """
def forward(self, h, tables, mask, cache{position}, **kwargs):
    lead = h.shape[:-1]
    heads = (*lead, -1, self.head_dim)
"""
_PROJECTIONS = {
    "plain": """
    q = self.q_proj(h).view(heads).transpose(1, 2)
    k = self.k_proj(h).view(heads).transpose(1, 2)
    v = self.v_proj(h).view(heads).transpose(1, 2)
""",
    "head norms": """
    q = self.q_norm(self.q_proj(h).view(heads)).transpose(1, 2)
    k = self.k_norm(self.k_proj(h).view(heads)).transpose(1, 2)
    v = self.v_proj(h).view(heads).transpose(1, 2)
""",
    "head norms behind": """
    q = self.q_proj(h).view(heads).transpose(1, 2)
    k = self.k_proj(h).view(heads).transpose(1, 2)
    v = self.v_proj(h).view(heads).transpose(1, 2)
    q = self.q_norm(q)
    k = self.k_norm(k)
""",
    "packed": """
    qkv = self.qkv_proj(h)
    end = self.config.num_attention_heads * self.head_dim
    q = qkv[..., :end]
    k = qkv[..., end : end + self.num_key_value_heads * self.head_dim]
    v = qkv[..., end + self.num_key_value_heads * self.head_dim :]
    q = q.view(heads).transpose(1, 2)
    k = k.view(heads).transpose(1, 2)
    v = v.view(heads).transpose(1, 2)
""",
}
_ROTATION = """
    cos, sin = tables
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
"""
_UPDATES = {
    "sin cos cache_position": """
    if cache is not None:
        words = {"sin": sin, "cos": cos, "cache_position": position}
        k, v = cache.update(k, v, self.layer_idx, words)
""",
    "": """
    if cache is not None:
        k, v = cache.update(k, v, self.layer_idx)
""",
    "kwargs": """
    if cache is not None:
        k, v = cache.update(k, v, self.layer_idx, kwargs=kwargs)
""",
}
_INTERFACES = (
    """
    interface = eager_attention_forward
    if self.config._attn_implementation != "eager":
        interface = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
""",
    """
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
""",
)
_DROPOUTS = ("0.0 if not self.training else self.attention_dropout", "self.attention_dropout if self.training else 0.0")
_WINDOWS = (
    "",
    "sliding_window=self.sliding_window,",
    'sliding_window=getattr(self.config, "sliding_window", None),',
)
_END = """
    out, weights = interface(self, q, k, v, mask, dropout={dropout}, scaling=self.scaling, {window} **kwargs)
    out = out.reshape(*lead, -1).contiguous()
    out = self.o_proj(out)
    return out, weights
"""


def canonical(code: str) -> str:
    """Return a function with its own names replaced by numbers: two that compute the same in the same steps are equal.

    Decorators, docstrings, annotations and defaults are left out; attributes and keywords stay.
    """
    function = ast.parse(textwrap.dedent(code)).body[0]
    assert isinstance(function, ast.FunctionDef)
    function.decorator_list, function.returns, function.name = [], None, "f"
    arguments = function.args
    arguments.defaults, arguments.kw_defaults = [], [None] * len(arguments.kwonlyargs)
    if isinstance(function.body[0], ast.Expr) and isinstance(function.body[0].value, ast.Constant):
        function.body = function.body[1:]
    plain = _Plain().visit(function)
    named = [node.arg for node in ast.walk(arguments) if isinstance(node, ast.arg)]
    named += [node.id for node in ast.walk(plain) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    numbers = {name: f"v{index}" for index, name in enumerate(dict.fromkeys(name for name in named if name != "self"))}
    for node in ast.walk(plain):
        if isinstance(node, ast.arg):
            node.arg, node.annotation = numbers.get(node.arg, node.arg), None
        elif isinstance(node, ast.Name):
            node.id = numbers.get(node.id, node.id)
    return ast.unparse(ast.fix_missing_locations(plain))


class _Plain(ast.NodeTransformer):
    """``x: T = y`` is ``x = y``."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return node if node.value is None else ast.Assign([node.target], node.value)


def _known() -> dict[str, tuple[str, str]]:
    """Every attention forward that is known, canonical: what happens to q and k first, and the cache's words."""
    found = {}
    parts = itertools.product(_PROJECTIONS, _UPDATES, _INTERFACES, _DROPOUTS, _WINDOWS)
    for heads, words, interface, dropout, window in parts:
        start = _START.format(position=", position" if "position" in words else "")
        end = _END.format(dropout=dropout, window=window)
        code = start + _PROJECTIONS[heads] + _ROTATION + _UPDATES[words] + interface + end
        found[canonical(code)] = heads, words
    return found


_KNOWN = _known()


@dataclass(frozen=True)
class Loop:
    """The list that a loop runs through: the attribute of self, how many of it, whether the loop counts, and the local
    that says whether it keeps the hidden states (or "").
    """

    layers: cst.BaseExpression
    attribute: str
    count: str
    counted: bool
    keeps: str


def match(source: Source, function: Function) -> Iterator[Site[Mark | Loop]]:
    """Forwards of known decoder layers and attentions, and loops whose body only calls a layer of self."""
    if not function.is_method or function.node.name.value != "forward":
        return
    code = source.code(function.node)
    if "self.o_proj" in code:
        known = _KNOWN.get(canonical(code))
        if known:
            value = f'{rope.FUNCTION}, "{known[0].removesuffix(" behind")}", "{known[1]}", forward'
            yield Site(function, function.node, Mark(_ATTENTION, value))
        return
    steps = program(code, _taken(source))
    if steps:
        yield Site(function, function.node, Mark(_PROGRAM, _value(steps)))
    for node in walk(function.node):
        if isinstance(node, cst.For):
            loop = _loop(source, node)
            if loop:
                yield Site(function, node, loop)


@lru_cache(maxsize=8)
def _taken(source: Source) -> tuple[str, str]:
    """What the file's attentions call the activations and the rotation's tables; stock's words where none is known or
    two differ.
    """
    found = set()
    for function in source.functions_near(RECIPE.hint):
        code = source.code(function.node)
        forward = function.is_method and function.node.name.value == "forward" and "self.o_proj" in code
        if forward and canonical(code) in _KNOWN:
            found.add(tuple(one.name.value for one in function.node.params.params[1:3]))
    hidden, tables = found.pop() if len(found) == 1 else _WORDS
    return hidden, tables


def _value(steps: str) -> str:
    """The program with its forward, on lines of its own where one line would be too long."""
    if len(steps) <= _LONGEST:
        return f'"{steps}", forward'
    lines = textwrap.wrap(steps, _LONGEST)
    quoted = [f'    "{line}"' for line in (*(f"{line} " for line in lines[:-1]), lines[-1])]
    return "\n".join(["(", *quoted[:-1], f"{quoted[-1]},", "    forward,", ")"])


def _loop(source: Source, node: cst.For) -> Loop | None:
    iterated: cst.BaseExpression = node.iter
    target: cst.BaseExpression = node.target
    counted = False
    if isinstance(iterated, cst.Call) and isinstance(iterated.func, cst.Name) and iterated.func.value == "enumerate":
        if len(iterated.args) != 1 or not isinstance(target, cst.Tuple) or len(target.elements) != 2:
            return None
        iterated, target, counted = iterated.args[0].value, target.elements[1].value, True
    found = re.fullmatch(r"self\.(\w+)(?:\[: ?(self\.config\.\w+)\])?", source.code(iterated))
    body = ast.parse(textwrap.dedent(source.code(node))).body[0]
    if not found or not isinstance(target, cst.Name) or not isinstance(body, ast.For) or body.orelse:
        return None
    keeps = _kept(body, target.value)
    return None if keeps is None else Loop(iterated, found.group(1), found.group(2) or "", counted, keeps)


_CALL = re.compile(r"(?P<h>\w+) = (?P<call>.+)")
_KEEPING = re.compile(
    r"if (?P<keeps>\w+):\n    \w+ \+= \((?P<h>\w+),\)\n"
    r"(?P<out>\w+) = (?P<call>.+)\n(?P=h) = (?P=out)\[0\]\n"
    r"if (?P<more>\w+):\n    \w+ \+= \((?P=out)\[1\],\)"
)


def _kept(loop: ast.For, layer: str) -> str | None:
    """The local that says whether the loop keeps hidden states, "" where it never does; None for another loop."""
    text = "\n".join(map(ast.unparse, loop.body))
    found = _CALL.fullmatch(text)
    if found:
        return "" if _calls(found["call"], layer, found["h"]) else None
    found = _KEEPING.fullmatch(text)
    asked = re.search(rf"\b(\w+)={found['more']}\b", found["call"]) if found else None
    if not found or not asked or asked[1] in RUNS_WITH:
        return None
    return found["keeps"] if _calls(found["call"], layer, found["h"]) else None


def _calls(text: str, layer: str, hidden: str) -> bool:
    """``layer(h, word=...)`` and nothing else; of the layer itself only ``layer.attention_type`` is read."""
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != layer or [*map(ast.unparse, call.args)] != [hidden]:
        return False
    if not any((keyword.arg or "").startswith(_WORDS[1]) for keyword in call.keywords):
        return False
    for keyword in call.keywords:
        read = [node for node in ast.walk(keyword.value) if isinstance(node, ast.Attribute)]
        owned = [node for node in read if isinstance(node.value, ast.Name) and node.value.id == layer]
        uses = [node for node in ast.walk(keyword.value) if isinstance(node, ast.Name) and node.id == layer]
        if len(uses) != len(owned) or any(node.attr != "attention_type" for node in owned):
            return False
    return True


def program(code: str, taken: tuple[str, str] = _WORDS) -> str | None:
    """Return a decoder layer's forward as a program (see the module text), or None where a statement is another one.

    ``taken``: the names of the two parameters of the attention that take the activations and the rotation's tables.
    """
    function = ast.parse(textwrap.dedent(code)).body[0]
    assert isinstance(function, ast.FunctionDef)
    parameters = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    body = [one for one in function.body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    if len(function.args.args) < 2:
        return None
    hidden = function.args.args[1].arg
    end = _end(body, hidden, parameters - RUNS_WITH)
    if end is None:
        return None
    words: list[str] = []
    kept = ""
    choices = dict.fromkeys(parameters, "")
    for statement in body[: end[0]]:
        if _unpacks(statement, hidden):
            continue
        chosen = _chooses(statement, parameters)
        if chosen:
            choices.update(chosen)
            continue
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
            kept = ast.unparse(statement.targets[0])
            if statement.value.id != hidden or kept == hidden or not isinstance(statement.targets[0], ast.Name):
                return None
            words.append("keep")
            continue
        step = _step(statement, hidden, kept, choices, taken)
        if step is None:
            return None
        words += step
    whole = kept not in choices and sum("@" in word for word in words) == 1
    return " ".join([*words, *end[1]]) if whole else None


_RETURNS = "return {h}"
_RETURNS_TUPLE = r"(?P<all>\w+) = \({h},\)\nif (?P<asked>\w+):\n    (?P=all) \+= \(\w+,\)\nreturn (?P=all)"


def _end(body: list[ast.stmt], hidden: str, ending: set[str]) -> tuple[int, list[str]] | None:
    """Where a layer's forward begins to return h, and the word for how: more than h only where a parameter asks that
    is one of ``ending``, whose value would end the plan.
    """
    if re.fullmatch(_RETURNS.format(h=hidden), ast.unparse(body[-1])):
        return len(body) - 1, []
    found = re.fullmatch(_RETURNS_TUPLE.format(h=hidden), "\n".join(map(ast.unparse, body[-3:])))
    return (len(body) - 3, ["tuple"]) if found and found["asked"] in ending else None


def _chooses(statement: ast.stmt, parameters: set[str]) -> dict[str, str]:
    """``if self.x.y: tables = a`` and else b, of the parameters a and b: how the name is chosen, else nothing."""
    form = r"if self\.(\w+)\.(\w+):\n    (\w+) = (\w+)\nelse:\n    \3 = (\w+)"
    found = re.fullmatch(form, ast.unparse(statement))
    if not found or not {found[4], found[5]} <= parameters or found[3] in parameters:
        return {}
    return {found[3]: f"{found[2]}?{found[4]}:{found[5]}@{found[1]}"}


def _unpacks(statement: ast.stmt, hidden: str) -> bool:
    text = ast.unparse(statement)
    return bool(re.fullmatch(rf"if isinstance\({hidden}, tuple\):\n    \(?{hidden}, \w+\)? = {hidden}", text))


def _step(
    statement: ast.stmt, hidden: str, kept: str, choices: dict[str, str], taken: tuple[str, str]
) -> list[str] | None:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    target, value = statement.targets[0], statement.value
    first = target.elts[0] if isinstance(target, ast.Tuple) and len(target.elts) == 2 else target
    if not isinstance(first, ast.Name) or first.id != hidden:
        return None
    if isinstance(value, ast.BinOp):
        return _sum(ast.unparse(value), hidden, kept) if first is target else None
    if not isinstance(value, ast.Call) or not _own(value.func):
        return None
    name = value.func.attr  # type: ignore[attr-defined]
    if ast.unparse(value) == f"self.{name}({hidden})":
        return [name]
    word = _attends(value, hidden, choices, taken) if first is not target else None
    return [word] if word else None


def _sum(text: str, hidden: str, kept: str) -> list[str] | None:
    for form, marks in (
        (rf"{kept} \+ {hidden}|{hidden} \+ {kept}", ()),
        (rf"{kept} \+ {hidden} \* self\.(\w+)", ("*",)),
        (rf"{kept} \+ self\.(\w*dropout\w*)\({hidden}\)", ("?",)),
    ):
        found = re.fullmatch(form, text) if kept else None
        if found:
            return [*(f"{mark}{found.group(1)}" for mark in marks), "add"]
    return None


def _own(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _attends(call: ast.Call, hidden: str, choices: dict[str, str], taken: tuple[str, str]) -> str | None:
    """The word for ``self.x(hidden_states=h, ...)``, by whatever name x takes h; the other words are parameters of the
    layer, handed on as they are, or tables that it has chosen for this very x.
    """
    own = f"@{call.func.attr}"  # type: ignore[attr-defined]
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    named = {word: value.id for word, value in given.items() if isinstance(value, ast.Name)}
    if call.args or len(named) != len(given) or named.pop(taken[0], None) != hidden or taken[1] not in named:
        return None
    chosen = choices.get(named.pop(taken[1]))
    if chosen is None or any(choices.get(value) != "" for value in named.values()):
        return None
    return (chosen or own) if chosen.endswith(own) or not chosen else None


def guard(source: Source, site: Site[Mark | Loop]) -> str | None:
    """Decline a file that has not all three: a loop, layers and an attention that a plan knows."""
    return _incomplete(source)


@lru_cache(maxsize=8)
def _incomplete(source: Source) -> str | None:
    found = [one for function in source.functions_near(RECIPE.hint) for one in match(source, function)]
    marks = {one.found.attribute: one for one in found if isinstance(one.found, Mark)}
    if _PROGRAM not in marks:
        return "no decoder layer of this file has a form that a plan knows"
    if _ATTENTION not in marks:
        return "no attention of this file has a form that a plan knows"
    if not any(isinstance(one.found, Loop) for one in found):
        return "no loop of this file does nothing but call a layer"
    function = source.function(rope.FUNCTION)
    if function is None or source.span(function.node)[0] > source.span(marks[_ATTENTION].node)[0]:
        return f"{rope.FUNCTION} is not defined once, and before the class"
    if first_match((rope.FULL, rope.PARTIAL), function.body) is None:
        return "the rotation is not the rotate-half form"
    return next((reason for one in rope.match(source, function) if (reason := rope.guard(source, one))), None)


def edit(source: Source, site: Site[Mark | Loop]) -> list[Edit]:
    """A mark behind the forward, or another list for the loop to run through."""
    found = site.found
    if isinstance(found, Mark):
        return behind(NAME, source, site.function, found)
    words = ["self", f"self.{found.attribute}", *([found.count] if found.count else [])]
    words += ["each=True"] if found.counted else []
    call = f"_amd.planned({', '.join(words)})"
    return [conditional(NAME, source, site.function, found.layers, call, unless=found.keeps)]


RECIPE: Recipe[Mark | Loop] = Recipe(
    name=NAME,
    description="for layer in self.layers: h = layer(h, ...), over decoder layers whose every statement is known",
    hint=re.compile(r"\bself\.o_proj\(|self\.self_attn\(|\bin (?:enumerate\()?self\.\w*layers\b"),
    match=match,
    guard=guard,
    edit=edit,
)
