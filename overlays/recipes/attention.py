"""The call of the attention function: let amd_ops choose the function, leave lookup and call as they are.

``interface(self, q, k, v, ...)``, where ``interface`` is the local that was looked up in ``ALL_ATTENTION_FUNCTIONS``,
whatever its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import assignment, names, walk
from rocm_overlay.patchgen.layout import insertion, test
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Block, Function, Source, blocks

NAME = "attention"
REGISTRY = "ALL_ATTENTION_FUNCTIONS"


@dataclass(frozen=True)
class Call:
    """The statement that calls the interface: the local's name, the suite, the place there, the first arguments."""

    name: str
    block: Block
    index: int
    first_arguments: tuple[cst.BaseExpression | None, ...]

    @property
    def statement(self) -> cst.BaseStatement:
        """The statement itself."""
        return self.block.statements[self.index]


def match(source: Source, function: Function) -> Iterator[Site[Call]]:
    """Every simple statement of a method that calls a local which was looked up in the registry."""
    interfaces = _interfaces(function) if function.is_method else frozenset()
    if not interfaces:
        return
    for block in blocks(function):
        for index, statement in enumerate(block.statements):
            if not isinstance(statement, cst.SimpleStatementLine):
                continue
            calls = [node for node in walk(statement) if _called(node) in interfaces]
            if calls:
                name = _called(calls[0]) or ""
                yield Site(function, calls[0], Call(name, block, index, tuple(map(_first_argument, calls))))


def _interfaces(function: Function) -> frozenset[str]:
    """The locals that some assignment of the function takes from the registry."""
    assigned = (assignment(statement) for block in blocks(function) for statement in block.statements)
    return frozenset(
        one[0].value for one in assigned if one and isinstance(one[0], cst.Name) and REGISTRY in set(names(one[1]))
    )


def _called(node: cst.CSTNode) -> str | None:
    """The name that is called, None for anything but a call of a plain name."""
    return node.func.value if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) else None


def _first_argument(node: cst.CSTNode) -> cst.BaseExpression | None:
    if not isinstance(node, cst.Call) or not node.args:
        return None
    first = node.args[0]
    return None if first.keyword or first.star else first.value


def guard(source: Source, site: Site[Call]) -> str | None:
    """Decline unless the interface is a local that is certainly set, and not set by us already."""
    found = site.found
    for argument in found.first_arguments:
        if not isinstance(argument, cst.Name) or argument.value != "self":
            return "the first argument of the interface is not self"
    bound = _binding(found)
    if bound is None:
        return "the attention function is not certainly assigned before the call in this method"
    if bound.loops != found.block.loops:
        return "the attention function is assigned outside the loop that calls it"
    if _called_before(found, bound):
        return "the attention function was already called with the same binding"
    return None


def _enclosing(call: Call) -> list[tuple[Block, int]]:
    return [*call.block.path, (call.block, call.index)]


def _binding(call: Call) -> Block | None:
    """The innermost suite that assigns the interface in a statement that runs before the call."""
    for block, end in reversed(_enclosing(call)):
        if any(_assigns(statement, call.name) for statement in block.statements[:end]):
            return block
    return None


def _called_before(call: Call, bound: Block) -> bool:
    """Say whether a statement between the assignment and the call uses the interface already."""
    for block, end in reversed(_enclosing(call)):
        for statement in reversed(block.statements[:end]):
            if block is bound and _assigns(statement, call.name):
                return False
            if any(_called(node) == call.name for node in walk(statement)):
                return True
        if block is bound:
            return False
    return False


def _assigns(statement: cst.BaseStatement, name: str) -> bool:
    assigned = assignment(statement)
    return assigned is not None and isinstance(assigned[0], cst.Name) and assigned[0].value == name


def edit(source: Source, site: Site[Call]) -> list[Edit]:
    """Rebind the local in front of the statement."""
    anchor = source.before(site.found.statement)
    if anchor is None:
        return []
    name = site.found.name
    lines = [f"if {test(NAME)}:", f"    {name} = _amd.route_attention(self, {name})"]
    return [insertion(NAME, site.function, anchor, lines)]


RECIPE = Recipe(
    name=NAME,
    description=f"a statement of a method that calls f(self, ...), f being looked up in {REGISTRY}",
    hint=re.compile(rf"\b{REGISTRY}\b"),
    match=match,
    guard=guard,
    edit=edit,
)
