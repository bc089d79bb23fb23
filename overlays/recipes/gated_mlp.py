"""``down(act(gate(x)) * up(x))``: one call for the whole of it. Activation and bias are looked at when it runs.

Three spellings: the one expression (llama), statements (a mixtral expert), and a gate and up that are one Linear
already (phi3). The first becomes a conditional expression, the other two an early return.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import value_of
from rocm_overlay.patchgen.layout import conditional, early_return
from rocm_overlay.patchgen.modules import not_linear
from rocm_overlay.patchgen.pattern import Bindings, Expression, Pattern, first_match
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source, blocks

NAME = "gated_mlp"

ONE_EXPRESSION = (
    Expression("self.__down(self.__act(self.__gate(__x)) * self.__up(__x))"),
    Expression("self.__down(self.__up(__x) * self.__act(self.__gate(__x)))"),
)
STATEMENTS = (
    Pattern("""
    __h = self.__act(self.__gate(__x)) * self.__up(__x)
    __h = self.__down(__h)
    return __h
    """),
    Pattern("""
    __h = self.__act(self.__gate(__x)) * self.__up(__x)
    return self.__down(__h)
    """),
    Pattern("""
    __g = self.__act(self.__gate(__x))
    __u = self.__up(__x)
    return self.__down(__g * __u)
    """),
    Pattern("""
    __g = self.__gate(__x)
    __u = self.__up(__x)
    return self.__down(self.__act(__g) * __u)
    """),
    Pattern("""
    __g = self.__gate(__x)
    __u = self.__up(__x)
    __h = self.__act(__g) * __u
    return self.__down(__h)
    """),
)
FUSED = (
    Pattern("""
    __h = self.__gate_up(__x)
    __g, __h = __h.chunk(2, dim=-1)
    __h = __h * self.__act(__g)
    return self.__down(__h)
    """),
    Pattern("""
    __both = self.__gate_up(__x)
    __g, __u = __both.chunk(2, dim=-1)
    return self.__down(__u * self.__act(__g))
    """),
    Pattern("""
    __both = self.__gate_up(__x)
    __g, __u = __both.chunk(2, dim=-1)
    return self.__down(self.__act(__g) * __u)
    """),
)
_DEFAULTS = {"gate": "gate_proj", "up": "up_proj", "gate_up": None, "down": "down_proj", "act": "act_fn"}


@dataclass(frozen=True)
class Mlp:
    """Attribute names by role, the input, and the expression to replace (None: guard the whole body)."""

    x: cst.CSTNode
    roles: tuple[tuple[str, str], ...]
    expression: cst.BaseExpression | None


def match(source: Source, function: Function) -> Iterator[Site[Mlp]]:
    """The three spellings in a method."""
    if not function.is_method:
        return
    whole = first_match((*STATEMENTS, *FUSED), function.body)
    if whole:
        yield Site(function, function.body[0], _mlp(whole, None))
        return
    for block in blocks(function):
        for statement in block.statements:
            value = value_of(statement)
            found = _one_expression(value) if value is not None else None
            if found and value is not None:
                yield Site(function, value, _mlp(found, value))


def _one_expression(value: cst.BaseExpression) -> Bindings | None:
    for pattern in ONE_EXPRESSION:
        found = pattern.match(value)
        if found is not None:
            return found
    return None


def _mlp(found: Bindings, expression: cst.BaseExpression | None) -> Mlp:
    roles = []
    for role in _DEFAULTS:
        node = found.get(f"__{role}")
        if isinstance(node, cst.Name):
            roles.append((role, node.value))
    return Mlp(found["__x"], tuple(roles), expression)


def guard(source: Source, site: Site[Mlp]) -> str | None:
    """Decline an input that is more than a name, one attribute in two roles, and layers that are not linear."""
    mlp = site.found
    if not isinstance(mlp.x, cst.Name):
        return "the input is not a plain name"
    if mlp.expression is None and mlp.x.value not in site.function.parameters:
        return f"{mlp.x.value} is not a parameter of the method"
    attributes = [attribute for _, attribute in mlp.roles]
    if len(set(attributes)) != len(attributes):
        return "one attribute has two roles"
    return not_linear(source, site.function, (attribute for role, attribute in mlp.roles if role != "act"))


def edit(source: Source, site: Site[Mlp]) -> list[Edit]:
    """A conditional expression, or an early return."""
    mlp = site.found
    words = ["self", source.code(mlp.x)]
    words += [f'{role}="{attribute}"' for role, attribute in mlp.roles if attribute != _DEFAULTS[role]]
    call = f"_amd.gated_mlp({', '.join(words)})"
    if mlp.expression is None:
        return early_return(NAME, source, site.function, call)
    return [conditional(NAME, source, site.function, mlp.expression, call)]


def down_calls(source: Source, function: Function) -> Iterator[cst.CSTNode]:
    """Every expression or body in this method that the recipe edits: no other recipe should look inside."""
    for site in match(source, function):
        if guard(source, site) is None:
            yield site.found.expression or function.node


RECIPE = Recipe(
    name=NAME,
    description="down(act(gate(x)) * up(x)) of modules of self: one expression, statements, or gate and up fused",
    hint=re.compile(r"\bself\.\w+\(\s*self\.\w+\(|\.chunk\(2, dim=-1\)|\bself\.up_proj\("),
    match=match,
    guard=guard,
    edit=edit,
)
