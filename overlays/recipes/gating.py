"""Gates by a sigmoid: an attention's output times one of its own width, and what a shared expert adds (qwen3_next).

    gate = gate.reshape(*shape, -1); ...; x = x * torch.sigmoid(gate)     shared = F.sigmoid(self.gate(h)) * shared
                                                                          out = out + shared

The first call takes the gate as it was cut from the projection, so its reshaping goes with it. The second one may give
None, where the gate is more than a plain Linear; the endings that the moe recipe repeats have it, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import assignment, names
from rocm_overlay.patchgen.layout import conditional, insertion, test, unless
from rocm_overlay.patchgen.pattern import Bindings, Pattern
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source

NAME = "gating"
RESULT = "_amd_shared"

RESHAPED = Pattern("__gate = __gate.reshape(*__shape, -1)")
PRODUCT = Pattern("__x = __x * torch.sigmoid(__gate)")
SHARED = Pattern("""
__shared = F.sigmoid(self.__own(__h)) * __shared
__out = __out + __shared
""")


@dataclass(frozen=True)
class Gate:
    """What holes took, the two statements, and those of the method that are neither and stand behind the first."""

    found: Bindings
    statements: tuple[cst.BaseStatement, ...]
    others: tuple[cst.BaseStatement, ...]


def match(source: Source, function: Function) -> Iterator[Site[Gate]]:
    """The two pairs of statements of a method, its own."""
    if not function.is_method:
        return
    body = function.body
    for index, statement in enumerate(body):
        found = SHARED.match(body[index : index + 2])
        if found is not None:
            yield Site(function, statement, Gate(found, body[index : index + 2], body[index + 2 :]))
        first = RESHAPED.match((statement,))
        if first is None:
            continue
        for later in range(index + 1, len(body)):
            second = PRODUCT.match((body[later],))
            if second is None or source.code(second["__gate"]) != source.code(first["__gate"]):
                continue
            others = (*body[index + 1 : later], *body[later + 1 :])
            yield Site(function, body[later], Gate({**first, **second}, (statement, body[later]), others))
            break


def guard(source: Source, site: Site[Gate]) -> str | None:
    """Decline what is no plain name, and a gate or a shared part that is used elsewhere."""
    found = site.found.found
    holes = ("__shared", "__out", "__h") if "__own" in found else ("__gate", "__x")
    for hole in holes:
        if not isinstance(found[hole], cst.Name):
            return f"{source.code(found[hole])} is not a plain name"
    own = source.code(found[holes[0]])
    return f"{own} is used elsewhere" if any(own in set(names(one)) for one in site.found.others) else None


def edit(source: Source, site: Site[Gate]) -> list[Edit]:
    """The call in place of the product and the reshaping, or in front of the shared part."""
    found, (first, second) = site.found.found, site.found.statements
    values = [assigned[1] for assigned in map(assignment, (first, second)) if assigned is not None]
    if "__own" not in found:
        gate, x = source.code(found["__gate"]), source.code(found["__x"])
        calls = (gate, f"_amd.sigmoid_gate({x}, {gate})")
        return [
            conditional(NAME, source, site.function, value, call) for value, call in zip(values, calls, strict=True)
        ]
    anchor = source.before(first)
    if anchor is None:
        return []
    lines = [f"{RESULT} = None", f"if {test(NAME)}:", f"    {RESULT} = {_call(source, found)}"]
    edits = [insertion(NAME, site.function, anchor, lines)]
    for value, otherwise in zip(values, ("None", RESULT), strict=True):
        edits += unless(NAME, source, site.function, value, RESULT, otherwise)
    return edits


def _call(source: Source, found: Bindings) -> str:
    out, shared, own, h = (source.code(found[hole]) for hole in ("__out", "__shared", "__own", "__h"))
    return f"_amd.shared_expert({out}, {shared}, self.{own}, {h})"


def repeated(source: Source, statements: Sequence[cst.BaseStatement]) -> list[str]:
    """The lines of simple statements, of which a shared expert's are ours where they are asked for."""
    lines: list[str] = []
    at = 0
    while at < len(statements):
        found = SHARED.match(statements[at : at + 2])
        if found is None:
            lines.append(source.code(statements[at]).strip())
            at += 1
            continue
        first, second = (source.code(statement).strip() for statement in statements[at : at + 2])
        lines += [
            f"{RESULT} = None",
            f"if _amd.on.{NAME}:",
            f"    {RESULT} = {_call(source, found)}",
            f"if {RESULT} is None:",
            f"    {first}",
            f"    {second}",
            "else:",
            f"    {source.code(found['__out'])} = {RESULT}",
        ]
        at += 2
    return lines


RECIPE = Recipe(
    name=NAME,
    description="an attention's output times the sigmoid of a gate, a shared expert's output behind one",
    hint=re.compile(r"\.sigmoid\("),
    match=match,
    guard=guard,
    edit=edit,
)
