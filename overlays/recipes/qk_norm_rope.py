"""Attention's head norms, rotation and cache update: one plan, asked for at the top of the forward.

    q = self.q_norm(...)                                   (_amd_qk or self).q_norm(...)
    q, k = apply_rotary_pos_emb(q, k, cos, sin)            _amd_qk(q, k, v, cos, sin) if _amd_qk else <stock>
    k, v = cache.update(k, v, self.layer_idx, ...)         (_amd_qk or cache).update(...)

``_amd_qk`` is None where nothing can be fused, or where the rotation is no longer the function of this file. The norms
take part only where they are the last thing that happens to a head before the rotation; the cache only where nothing
happens to k and v between rotation and update.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import assignment, binds, names, self_call, walk
from rocm_overlay.patchgen.layout import MAX_COLUMNS, choice, insertion, test
from rocm_overlay.patchgen.pattern import first_match
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Block, Function, Source, blocks

from . import rope

NAME = "qk_rope"
PLAN = "_amd_qk"
NORMS = ("q_norm", "k_norm")
FORMS = (rope.FULL, rope.PARTIAL, rope.PARTIAL_FIRST, rope.PARTIAL_IN_RETURN, rope.HALVES)


@dataclass(frozen=True)
class Update:
    """``k, v = cache.update(k, v, self.layer_idx, ...)``: the cache, v, and the positions that the cache is told."""

    cache: cst.Name
    v: str
    position: str | None


@dataclass(frozen=True)
class Rotated:
    """The rotating call, its names, the ``self`` of each head norm, and the cache's update where it takes part."""

    block: Block
    index: int
    call: cst.Call
    q: str
    k: str
    tables: tuple[str, str]
    norms: tuple[cst.Name, ...]
    update: Update | None


def match(source: Source, function: Function) -> Iterator[Site[Rotated]]:
    """Every ``q, k = apply_rotary_pos_emb(q, k, cos, sin)`` in a method."""
    if not function.is_method:
        return
    for block in blocks(function):
        for index, statement in enumerate(block.statements):
            words = _rotation(statement)
            if words is None:
                continue
            assigned = assignment(statement)
            assert assigned is not None
            assert isinstance(assigned[1], cst.Call)
            q, k, cos, sin = words
            update = _update(source, function, assigned[1], k)
            norms = _norms(block, index, q, k)
            yield Site(function, assigned[1], Rotated(block, index, assigned[1], q, k, (cos, sin), norms, update))


def _rotation(statement: cst.BaseStatement) -> tuple[str, ...] | None:
    assigned = assignment(statement)
    if assigned is None or not isinstance(assigned[0], cst.Tuple) or not isinstance(assigned[1], cst.Call):
        return None
    call = assigned[1]
    if not isinstance(call.func, cst.Name) or call.func.value != rope.FUNCTION or len(call.args) != 4:
        return None
    targets = [element.value for element in assigned[0].elements]
    values = [argument.value for argument in call.args if argument.keyword is None and not argument.star]
    words = [node.value for node in (*targets, *values) if isinstance(node, cst.Name)]
    if len(targets) != 2 or len(words) != 6 or words[:2] != words[2:4] or len(set(words[2:])) != 4:
        return None
    return tuple(words[2:])


def _norms(block: Block, end: int, q: str, k: str) -> tuple[cst.Name, ...]:
    """The ``self`` nodes of q_norm and k_norm in the rotation's own suite; empty unless both come last."""
    found = []
    for target, attribute in ((q, NORMS[0]), (k, NORMS[1])):
        for index in reversed(range(end)):
            statement = block.statements[index]
            owner = _normed(statement, target, attribute)
            if owner is not None:
                found.append(owner)
            if target in set(names(statement)) | binds(statement):
                break  # whatever it is, it is the last thing that happens to it
    return tuple(found) if len(found) == 2 else ()


def _normed(statement: cst.BaseStatement, target: str, attribute: str) -> cst.Name | None:
    """The ``self`` of ``target = self.<attribute>(...)``, with or without ``.transpose(1, 2)`` behind it."""
    assigned = assignment(statement)
    if assigned is None or not isinstance(assigned[0], cst.Name) or assigned[0].value != target:
        return None
    value = assigned[1]
    if isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute) and value.func.attr.value == "transpose":
        sides = [argument.value.value for argument in value.args if isinstance(argument.value, cst.Integer)]
        if sides != ["1", "2"] or len(value.args) != 2:
            return None
        value = value.func.value
    called = self_call(value)
    if called is None or called[0] != attribute:
        return None
    assert isinstance(value, cst.Call)
    assert isinstance(value.func, cst.Attribute)
    assert isinstance(value.func.value, cst.Name)
    return value.func.value


def _update(source: Source, function: Function, rotation: cst.Call, k: str) -> Update | None:
    """The one ``k, v = cache.update(k, v, self.layer_idx, ...)`` after the rotation.

    A cache is what is updated with k, v and the index of the layer, whatever the release calls it.
    """
    found = []
    simple = [s for block in blocks(function) for s in block.statements if isinstance(s, cst.SimpleStatementLine)]
    begin = source.span(rotation)[1]
    for statement in simple:
        words = _updated(statement, k)
        if words:
            found.append((statement, *words))
    if len(found) != 1 or source.span(found[0][0])[0] < begin:
        return None
    update, cache, v = found[0]
    end = source.span(update)[0]
    if cache.value not in function.parameters:
        return None
    between = [s for s in simple if begin < source.span(s)[0] < end]
    if any({k, v, cache.value} & (set(names(s)) | binds(s)) for s in between):
        return None
    before = [s for s in simple if source.span(s)[1] < begin]
    if any(cache.value in binds(s) for s in before) or not any(v in binds(s) for s in before):
        return None
    return Update(cache, v, _position(function, update, before + between))


def _position(function: Function, update: cst.BaseStatement, earlier: Iterable[cst.BaseStatement]) -> str | None:
    """The parameter whose value the update is told as ``cache_position``, in a dict that it is given (4.x)."""
    assigned = assignment(update)
    assert assigned is not None
    assert isinstance(assigned[1], cst.Call)
    given = [argument.value for argument in assigned[1].args[3:]]
    words = {node.value for node in given if isinstance(node, cst.Name)}
    for statement in earlier:
        made = assignment(statement)
        if made is not None and isinstance(made[0], cst.Name) and made[0].value in words:
            given.append(made[1])
    for node in given:
        for element in node.elements if isinstance(node, cst.Dict) else ():
            if not isinstance(element, cst.DictElement) or not isinstance(element.key, cst.SimpleString):
                continue
            value = element.value
            if element.key.evaluated_value == "cache_position" and isinstance(value, cst.Name):
                return value.value if value.value in function.parameters else None
    return None


def _updated(statement: cst.BaseStatement, k: str) -> tuple[cst.Name, str] | None:
    assigned = assignment(statement)
    if assigned is None or not isinstance(assigned[0], cst.Tuple) or not isinstance(assigned[1], cst.Call):
        return None
    call = assigned[1]
    if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "update" or len(call.args) < 3:
        return None
    targets = [element.value.value for element in assigned[0].elements if isinstance(element.value, cst.Name)]
    given = [argument.value for argument in call.args[:3]]
    values = [node.value for node in given[:2] if isinstance(node, cst.Name)]
    own = cst.parse_expression("self.layer_idx")
    if len(targets) != 2 or targets != values or targets[0] != k or not given[2].deep_equals(own):
        return None
    return (call.func.value, targets[1]) if isinstance(call.func.value, cst.Name) else None


def guard(source: Source, site: Site[Rotated]) -> str | None:
    """Decline where there is nothing to fuse with, another rotation, or no safe place for the plan."""
    found = site.found
    if not found.norms and found.update is None:
        return "neither head norms nor a cache update stand directly beside the rotation"
    function = source.function(rope.FUNCTION)
    if function is None:
        return f"{rope.FUNCTION} is not defined exactly once in this file"
    if first_match(FORMS, function.body) is None:
        return "the rotation is none of the rotate-half forms that return what they turn as it is"
    for one in rope.match(source, function):
        reason = rope.guard(source, one)
        if reason is not None:
            return reason
    if found.block.loops:
        return "the rotation is in a loop"
    if re.search(rf"\b{PLAN}\b", source.text):
        return f"the file already uses the name {PLAN}"
    first = site.function.body[0]
    if any(_projects(node) for node in walk(first)):
        return "the forward begins with a projection, where the plan should stand"
    return None


def _projects(node: cst.CSTNode) -> bool:
    call = self_call(node)
    return call is not None and call[0].endswith("_proj")


def edit(source: Source, site: Site[Rotated]) -> list[Edit]:
    """The plan in front of the first statement, and the three places where it stands in."""
    found, function = site.found, site.function
    anchor = source.before(function.body[0])
    if anchor is None:
        return []
    words = ["self"]
    if found.update is not None:
        words.append(found.update.cache.value)
        if found.update.position is not None:
            words.append(found.update.position)
    if found.norms:
        words.append("norms=True")
    words.append(f"rotate={rope.FUNCTION}")
    rotation = source.function(rope.FUNCTION)
    if rotation is not None and rope.HALVES.match(rotation.body) is not None:
        words.append("halves=True")
    lines = [f"{PLAN} = (_amd.qk_rope({', '.join(words)})", f"    if {test(NAME)} else None)"]
    edits = [insertion(NAME, function, anchor, lines)]
    for node in (*found.norms, *([found.update.cache] if found.update is not None else [])):
        start, end = source.span(node)
        text = _either(source, node)
        edits.append(Edit(start, end, text.encode("utf-8"), NAME, function.qualname))
    edits.append(_rotate(source, site))
    return edits


def _either(source: Source, node: cst.Name) -> str:
    """``(_amd_qk or <name>)``, on a line of its own where the statement would grow too long."""
    start, end = source.span(node)
    newline = source.newline_after(end)
    begin, stop = source.line_start(start), source.data.find(newline.encode("ascii"), end)
    line = source.data[begin:stop].decode("utf-8")
    text = f"{PLAN} or {node.value}"
    if len(line) - len(node.value) + len(text) + 2 <= MAX_COLUMNS:
        return f"({text})"
    indent = line[: len(line) - len(line.lstrip())]
    return f"({newline}{indent}    {text}{newline}{indent})"


def _rotate(source: Source, site: Site[Rotated]) -> Edit:
    found = site.found
    start, end = source.span(found.call)
    begin = source.line_start(start)
    line = source.data[begin:start].decode("utf-8")
    indent, newline = line[: len(line) - len(line.lstrip())], source.newline_after(end)
    v = found.update.v if found.update is not None else "None"
    call = f"{PLAN}({', '.join((found.q, found.k, v, *found.tables))})"
    text = newline.join(choice(line, call, f"if {PLAN}", source.code(found.call), indent))
    return Edit(start, end, text.encode("utf-8"), NAME, site.function.qualname)


def parts(site: Site[Rotated]) -> dict[str, str]:
    """The head norms and the cache, where they take part."""
    found = {"norms": ", ".join(NORMS)} if site.found.norms else {}
    return found | ({"cache": site.found.update.cache.value} if site.found.update is not None else {})


RECIPE = Recipe(
    name=NAME,
    description=f"q, k = {rope.FUNCTION}(q, k, cos, sin) beside head norms or a cache update",
    hint=re.compile(rf"= {rope.FUNCTION}\("),
    match=match,
    guard=guard,
    edit=edit,
    parts=parts,
)
