"""The call ``attention_interface(self, ...)``: let amd_ops choose the function, leave lookup and call as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import assignment, walk
from rocm_overlay.patchgen.layout import insertion, test
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Block, Function, Source, blocks

NAME = "attention"
INTERFACE = "attention_interface"


@dataclass(frozen=True)
class Call:
    """The statement that calls the interface: its suite, its place there, and the first argument of each call."""

    block: Block
    index: int
    first_arguments: tuple[cst.BaseExpression | None, ...]

    @property
    def statement(self) -> cst.BaseStatement:
        """The statement itself."""
        return self.block.statements[self.index]


def match(source: Source, function: Function) -> Iterator[Site[Call]]:
    """Every simple statement of a method that calls the interface."""
    if not function.is_method:
        return
    for block in blocks(function):
        for index, statement in enumerate(block.statements):
            if not isinstance(statement, cst.SimpleStatementLine):
                continue
            calls = [node for node in walk(statement) if _calls_interface(node)]
            if calls:
                yield Site(function, calls[0], Call(block, index, tuple(_first_argument(call) for call in calls)))


def _calls_interface(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value == INTERFACE


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
        return f"{INTERFACE} is not certainly assigned before the call in this method"
    if bound.loops != found.block.loops:
        return f"{INTERFACE} is assigned outside the loop that calls it"
    if _called_before(found, bound):
        return f"{INTERFACE} was already called with the same binding"
    return None


def _enclosing(call: Call) -> list[tuple[Block, int]]:
    return [*call.block.path, (call.block, call.index)]


def _binding(call: Call) -> Block | None:
    """The innermost suite that assigns the interface in a statement that runs before the call."""
    for block, end in reversed(_enclosing(call)):
        if any(_assigns(statement) for statement in block.statements[:end]):
            return block
    return None


def _called_before(call: Call, bound: Block) -> bool:
    """Say whether a statement between the assignment and the call uses the interface already."""
    for block, end in reversed(_enclosing(call)):
        for statement in reversed(block.statements[:end]):
            if block is bound and _assigns(statement):
                return False
            if any(_calls_interface(node) for node in walk(statement)):
                return True
        if block is bound:
            return False
    return False


def _assigns(statement: cst.BaseStatement) -> bool:
    assigned = assignment(statement)
    return assigned is not None and isinstance(assigned[0], cst.Name) and assigned[0].value == INTERFACE


def edit(source: Source, site: Site[Call]) -> list[Edit]:
    """Rebind the local in front of the statement."""
    anchor = source.before(site.found.statement)
    if anchor is None:
        return []
    lines = [f"if {test(NAME)}:", f"    {INTERFACE} = _amd.route_attention(self, {INTERFACE})"]
    return [insertion(NAME, site.function, anchor, lines)]


RECIPE = Recipe(
    name=NAME,
    description=f"a statement of a method that calls {INTERFACE}(self, ...)",
    hint=re.compile(rf"\b{INTERFACE}\("),
    match=match,
    guard=guard,
    edit=edit,
)
