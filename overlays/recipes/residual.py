"""The residual stream of a layer: an add with the norm that follows it, and the add that follows the MLP.

    h = residual + h; residual = h; h = self.norm(h)       one op (add_norm)
    h = self.mlp(h); h = residual + h                      the add inside the MLP's last GEMM (mlp_add)

A dropout around the term that is added (phi3) is handed to the op, which asks whether it does anything.

The stock statements stay where they are and take their values from the op's result where there is one. Only plain
adds: with a residual multiplier the expression is another one. What the norm and the MLP are, is looked at when they
run. Where the second pair directly follows the first three, nobody else holds the residual, and the GEMM may write its
result over it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import assignment, self_call
from rocm_overlay.patchgen.layout import MAX_COLUMNS, insertion, test
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source, blocks

NAME = "residual"
SUM = "_amd_sum"
MLP = "_amd_mlp"
_NO_MLP = re.compile(r"norm|attn|attention|dropout|proj|dense", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One of the two shapes: its first statement, the add, the call of the sub-module, and the names in them."""

    statement: cst.BaseStatement
    total: cst.BaseExpression
    call: cst.BaseExpression
    module: str
    hidden: str
    residual: str
    dropout: str | None = None

    def words(self, *more: str) -> str:
        """The arguments of our call."""
        dropout = [f"dropout=self.{self.dropout}"] if self.dropout else []
        return ", ".join([f"self.{self.module}", self.hidden, self.residual, *more, *dropout])


@dataclass(frozen=True)
class Stream:
    """An add_norm, an mlp_add, or the two with no statement between them."""

    norm: Step | None
    mlp: Step | None


def match(source: Source, function: Function) -> Iterator[Site[Stream]]:
    """Both shapes in every suite of a method."""
    if not function.is_method:
        return
    for block in blocks(function):
        statements, index = block.statements, 0
        while index < len(statements):
            norm = _add_norm(statements[index : index + 3])
            after = index + (3 if norm else 0)
            mlp = _mlp_add(statements[after : after + 2])
            if norm and mlp and (norm.hidden, norm.residual) != (mlp.hidden, mlp.residual):
                mlp = None
            first = norm or mlp
            if first:
                yield Site(function, first.total if norm else first.call, Stream(norm, mlp))
            index = max(after + (2 if mlp else 0), index + 1)


def _add_norm(statements: Sequence[cst.BaseStatement]) -> Step | None:
    if len(statements) != 3:
        return None
    added, kept, normed = _added(statements[0]), assignment(statements[1]), _called(statements[2])
    if added is None or kept is None or normed is None:
        return None
    hidden, residual, total, dropout = added
    if [_name(part) for part in kept] != [residual, hidden] or normed[0] != hidden:
        return None
    return Step(statements[0], total, normed[2], normed[1], hidden, residual, dropout)


def _mlp_add(statements: Sequence[cst.BaseStatement]) -> Step | None:
    if len(statements) != 2:
        return None
    called, added = _called(statements[0]), _added(statements[1])
    if called is None or added is None or called[0] != added[0] or _NO_MLP.search(called[1]):
        return None
    hidden, residual, total, dropout = added
    return Step(statements[0], total, called[2], called[1], hidden, residual, dropout)


def _called(statement: cst.BaseStatement) -> tuple[str, str, cst.BaseExpression] | None:
    """Return (h, module, value) of ``h = self.<module>(h)``, else None."""
    assigned = assignment(statement)
    call = self_call(assigned[1]) if assigned else None
    hidden = _name(assigned[0]) if assigned else None
    if assigned is None or call is None or hidden is None or _name(call[1]) != hidden:
        return None
    return hidden, call[0], assigned[1]


def _added(statement: cst.BaseStatement) -> tuple[str, str, cst.BaseExpression, str | None] | None:
    """Return (h, residual, value, dropout) of ``h = residual + h`` or ``h = h + residual``, else None.

    ``dropout`` is X of ``h = residual + self.X(h)`` where the name says that X is one.
    """
    assigned = assignment(statement)
    if assigned is None or not isinstance(assigned[1], cst.BinaryOperation):
        return None
    hidden, dropout, terms = _name(assigned[0]), None, []
    for term in (assigned[1].left, assigned[1].right):
        call = self_call(term)
        if call is not None and "dropout" in call[0]:
            dropout, term = call[0], call[1]
            if _name(term) != hidden:
                return None
        terms.append(_name(term))
    others = [term for term in terms if term != hidden]
    if not isinstance(assigned[1].operator, cst.Add) or hidden is None or len(others) != 1 or others[0] is None:
        return None
    return hidden, others[0], assigned[1], dropout


def _name(node: cst.CSTNode) -> str | None:
    return node.value if isinstance(node, cst.Name) else None


def guard(source: Source, site: Site[Stream]) -> str | None:
    """Decline a file that knows a name of ours for something else."""
    found = re.search(rf"\b(?:{SUM}|{MLP})\b", source.text)
    return f"the file already uses the name {found.group()}" if found else None


def edit(source: Source, site: Site[Stream]) -> list[Edit]:
    """Ask for the results in front of each shape; the stock values are used where there are none."""
    norm, mlp = site.found.norm, site.found.mlp
    edits: list[Edit] = []
    if norm:
        call = f"_amd.add_norm({norm.words()})"
        made = _step(source, site, norm, SUM, "add_norm", call, (f"{SUM}[1]", f"{SUM}[0]"))
        if not made:
            return []
        edits += made
    if mlp:
        owned = [f"{SUM} is not None"] if norm else []
        call = f"_amd.mlp_add({mlp.words(*owned)})"
        made = _step(source, site, mlp, MLP, "mlp_add", call, (mlp.hidden, MLP))
        if not made:
            return []
        edits += made
    return edits


def _step(
    source: Source, site: Site[Stream], step: Step, result: str, switch: str, call: str, ours: tuple[str, str]
) -> list[Edit]:
    anchor = source.before(step.statement)
    if anchor is None:
        return []
    lines = [f"{result} = None", f"if {test(switch)}:", f"    {result} = {call}"]
    edits = [insertion(NAME, site.function, anchor, lines)]
    for node, value in zip((step.total, step.call), ours, strict=True):
        start, end = source.span(node)
        text = _conditional(source, node, f"if {result} is None", f"else {value}")
        edits.append(Edit(start, end, text.encode("utf-8"), NAME, site.function.qualname))
    return edits


def _conditional(source: Source, node: cst.BaseExpression, *rest: str) -> str:
    """The stock expression with ours behind it, in one line where that fits."""
    start, end = source.span(node)
    newline = source.newline_after(end)
    begin, stop = source.line_start(start), source.data.find(newline.encode("ascii"), end)
    stock = source.code(node)
    text = " ".join((stock, *rest))
    line = source.data[begin:stop].decode("utf-8")
    if len(line) - len(stock) + len(text) <= MAX_COLUMNS:
        return text
    indent = line[: len(line) - len(line.lstrip())]
    return newline.join(("(", *(f"{indent}    {part}" for part in (stock, *rest)), f"{indent})"))


def parts(site: Site[Stream]) -> dict[str, str]:
    """The norm and the MLP, where they take part."""
    steps = {"norm": site.found.norm, "mlp": site.found.mlp}
    return {name: step.module for name, step in steps.items() if step is not None}


RECIPE = Recipe(
    name=NAME,
    description="h = residual + h; residual = h; h = self.<norm>(h), or h = self.<mlp>(h); h = residual + h",
    hint=re.compile(r"\b(\w+) = (?:\w+ \+ (?:self\.\w+\()?\1|\1 \+ \w+)\b"),
    match=match,
    guard=guard,
    edit=edit,
    parts=parts,
)
