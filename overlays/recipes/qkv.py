"""q_proj, k_proj and v_proj (or query, key and value) of one tensor: ask for all three at once, in front of the first.

What comes back is a list that each stock statement takes its result from where it called the projection, so that no
value lives longer than in stock. Off, the list is None and every statement is stock's, in stock's order. On, the calls
move up to the first of them, so nothing in between may touch what they read or what they set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import assignment, binds, names, self_call, walk
from rocm_overlay.patchgen.layout import MAX_COLUMNS, choice, insertion, test
from rocm_overlay.patchgen.modules import not_linear
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Block, Function, Source, blocks

NAME = "qkv"
RESULTS = "_amd_qkv"
# The spellings of q, k and v; the first is what amd_ops takes without being told.
SPELLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("linear_q", "linear_k", "linear_v"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
)
_SPELLING = {name: spelling for spelling in SPELLINGS for name in spelling}


@dataclass(frozen=True)
class Projection:
    """One of the three: the call, its argument, and the statement it is in."""

    name: str
    call: cst.BaseExpression
    argument: cst.BaseExpression
    index: int
    statement: cst.BaseStatement

    @property
    def target(self) -> str | None:
        """The name that the statement assigns; the first of a tuple of names; None for anything else."""
        assigned = assignment(self.statement)
        if assigned is None:
            return None
        target = assigned[0]
        if isinstance(target, cst.Tuple):
            elements = [element.value for element in target.elements]
            if not elements or not all(isinstance(element, cst.Name) for element in elements):
                return None
            target = elements[0]
        return target.value if isinstance(target, cst.Name) else None


@dataclass(frozen=True)
class Triple:
    """The three projections in the order q, k, v, and the suite they are in."""

    block: Block
    projections: tuple[Projection, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes of q, k and v."""
        return tuple(one.name for one in self.projections)


def match(source: Source, function: Function) -> Iterator[Site[Triple]]:
    """Every suite of a method whose own simple statements call each of the three projections once."""
    if not function.is_method:
        return
    for block in blocks(function):
        found = list(_projections(block))
        for spelling in SPELLINGS:
            mine = [one for one in found if one.name in spelling]
            if sorted(one.name for one in mine) != sorted(spelling):
                continue
            ordered = tuple(sorted(mine, key=lambda one: spelling.index(one.name)))
            yield Site(function, min(ordered, key=lambda one: one.index).call, Triple(block, ordered))


def _projections(block: Block) -> Iterator[Projection]:
    for index, statement in enumerate(block.statements):
        if not isinstance(statement, cst.SimpleStatementLine):
            continue
        for node in walk(statement):
            call = self_call(node)
            if call and call[0] in _SPELLING and isinstance(node, cst.BaseExpression):
                yield Projection(call[0], node, call[1], index, statement)


def guard(source: Source, site: Site[Triple]) -> str | None:
    """Decline unless moving the calls up to the first of them cannot change anything."""
    found = site.found.projections
    arguments = [source.code(one.argument) for one in found]
    if not all(isinstance(one.argument, cst.Name) for one in found):
        return f"the projections take {', '.join(arguments)}, expected one plain name"
    if len(set(arguments)) != 1:
        return f"the projections take different arguments: {', '.join(arguments)}"
    targets = [one.target for one in found]
    if None in targets:
        return "a projection is not in an assignment to a name"
    if len({*targets, arguments[0]}) != 4:
        # Also where two projections are in one statement: they would share its target.
        return "the assigned names and the argument are not four different names"
    return (
        _own_statements(source, site.found, arguments[0])
        or _between(source, site.found, arguments[0])
        or not_linear(source, site.function, site.found.names)
    )


def _own_statements(source: Source, triple: Triple, argument: str) -> str | None:
    """The three statements may bind nothing but their targets, and may not read a target of the three."""
    targets = {one.target for one in triple.projections}
    for one in triple.projections:
        bound = binds(one.statement)
        if argument in bound or (bound & targets) != {one.target}:
            return f"line {source.line(one.statement)} rebinds a name that another projection uses"
        assigned = assignment(one.statement)
        if assigned and targets & set(names(assigned[1])):
            return f"line {source.line(one.statement)} reads a name that the projections set"
        if not _always_evaluated(one):
            return f"line {source.line(one.statement)} does not always call the projection"
    return None


def _always_evaluated(one: Projection) -> bool:
    """False where the call sits behind a condition, in a comprehension or in a lambda."""
    lazy = (cst.IfExp, cst.BooleanOperation, cst.BaseComp, cst.Lambda, cst.Comparison)
    return not any(isinstance(node, lazy) and one.call in set(walk(node)) for node in walk(one.statement))


def _between(source: Source, triple: Triple, argument: str) -> str | None:
    """Statements between the first and the last: plain assignments that leave alone what the calls read and set."""
    indices = sorted(one.index for one in triple.projections)
    targets = {one.target for one in triple.projections}
    for index in range(indices[0] + 1, indices[-1]):
        if index in indices:
            continue
        statement = triple.block.statements[index]
        where = f"line {source.line(statement)}, between the projections,"
        bound = binds(statement)
        if argument in bound:
            return f"{where} rebinds {argument}"
        if assignment(statement) is None:
            return f"{where} is not a plain assignment"
        if any(one.index == index for one in _projections(triple.block)):
            return f"{where} is a projection of another three"
        pending = {one.target for one in triple.projections if one.index > index}
        if (bound & targets) - {one.target for one in triple.projections if one.index < index}:
            return f"{where} binds a name that the projections set"
        if pending & set(names(statement)):
            return f"{where} reads a name before its projection sets it"
        if "self" in bound:
            return f"{where} changes self"
    return None


def edit(source: Source, site: Site[Triple]) -> list[Edit]:
    """The question in front of the first statement, and three calls that look for their result first."""
    found = sorted(site.found.projections, key=lambda one: one.index)
    anchor = source.before(found[0].statement)
    if anchor is None:
        return []
    call = f"list(_amd.qkv_proj(self, {', '.join([source.code(found[0].argument), *_names(found)])}))"
    lines = [f"{RESULTS} = {call} if {test(NAME)} else None"]
    if len(anchor.indent + lines[0]) > MAX_COLUMNS:
        lines = [f"{RESULTS} = ({call}", f"    if {test(NAME)} else None)"]
    return [
        insertion(NAME, site.function, anchor, lines),
        *(taken(NAME, source, site.function, one.call) for one in found),
    ]


def _names(found: list[Projection]) -> list[str]:
    """The argument that names the projections in stock's order, where that is not the usual one."""
    names = tuple(one.name for one in found)
    if names == SPELLINGS[0]:
        return []
    return ["(" + ", ".join(f'"{name}"' for name in names) + ")"]


def taken(recipe: str, source: Source, function: Function, call: cst.BaseExpression, results: str = RESULTS) -> Edit:
    """``_amd_qkv.pop(0) if _amd_qkv else <the call>``: the list has one result less for each that was taken."""
    start, end = source.span(call)
    begin, newline = source.line_start(start), source.newline_after(end)
    before = source.data[begin:start].decode("utf-8")
    indent = before[: len(before) - len(before.lstrip())]
    tail = source.data[end : source.data.find(newline.encode("ascii"), end)].decode("utf-8")
    value, condition, stock = f"{results}.pop(0)", f"if {results}", source.code(call)
    text = f"({value} {condition} else {stock})"
    if "\n" in text or len(before + text + tail) > MAX_COLUMNS:
        text = newline.join(choice(before, value, condition, stock, indent, tail))
    return Edit(start, end, text.encode("utf-8"), recipe, function.qualname)


RECIPE = Recipe(
    name=NAME,
    description="self.q_proj(x), self.k_proj(x), self.v_proj(x) (or query, key, value) of the same x in one suite",
    hint=re.compile(rf"\bself\.(?:{'|'.join(spelling[0] for spelling in SPELLINGS)})\("),
    match=match,
    guard=guard,
    edit=edit,
)
