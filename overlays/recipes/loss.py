"""The loss of a causal language model: ask for it in front of the head, from the hidden states.

    logits = self.<head>(h)                                     None where there is a loss of ours
    (scales and a soft cap of the logits)                       handed to amd_ops, left out then
    if labels is not None:
        loss = self.loss_function(logits, labels, ...)          ours, where there is one

The logits are whatever the loss function is given, the head is what made them. A forward that does more with them than
to return them is left alone: amd_ops never makes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import libcst as cst
from rocm_overlay.patchgen.edits import Edit
from rocm_overlay.patchgen.flow import assignment, binds, names, self_call, walk
from rocm_overlay.patchgen.layout import MAX_COLUMNS, choice, insertion, test
from rocm_overlay.patchgen.modules import not_linear
from rocm_overlay.patchgen.pattern import Expression, Pattern
from rocm_overlay.patchgen.recipe import Recipe, Site
from rocm_overlay.patchgen.source import Function, Source, blocks

NAME = "loss"
RESULT = "_amd_loss"
AHEAD = f"None if {RESULT} is not None else "
"""What stands in front of a value that is not needed where there is a loss of ours."""

_CALL = Expression("self.loss_function")
_FLOATS = (Expression("__x.float()"), Expression("__x.to(torch.float32)"))
_MOVED = Expression("__labels.to(__x.device)")
_SOFTCAP = Pattern("""
    if __cap is not None:
        __x = __x / __cap
        __x = torch.tanh(__x)
        __x = __x * __cap
    """)


@dataclass
class Loss:
    """The head's statement, its name and argument; the loss's statement, its test and arguments; what lies between."""

    head: str
    argument: cst.BaseExpression
    logits: str
    made: cst.BaseStatement
    given: cst.If
    call: cst.Call
    scales: dict[str, cst.BaseExpression] = field(default_factory=dict)
    skipped: list[cst.BaseExpression] = field(default_factory=list)
    refused: str | None = None


def match(source: Source, function: Function) -> Iterator[Site[Loss]]:
    """Every ``if`` that holds one call of self.loss_function whose logits a module of self has made before it."""
    if not function.is_method:
        return
    for block in blocks(function):
        for index, statement in enumerate(block.statements):
            call = _loss_call(statement) if isinstance(statement, cst.If) and statement.orelse is None else None
            logits = _logits(call) if call is not None else None
            if call is None or logits is None or not isinstance(statement, cst.If):
                continue
            found = _found(block.statements[:index], statement, call, logits)
            if found is not None:
                _read(found, block.statements[:index], block.statements[index + 1 :])
                yield Site(function, found.made, found)


def heads(source: Source, function: Function) -> set[cst.CSTNode]:
    """The values in a function that get AHEAD in front of them because they make logits."""
    return {_value(site.found.made) for site in match(source, function) if guard(source, site) is None}


def _loss_call(statement: cst.If) -> cst.Call | None:
    """The call of self.loss_function, where one statement of the suite is ``name = <that call>``."""
    calls = [node for node in walk(statement.body) if isinstance(node, cst.Call) and _CALL.match(node.func) is not None]
    values = [assigned[1] for one in statement.body.body if (assigned := assignment(one)) is not None]
    return calls[0] if len(calls) == 1 and calls[0] in values else None


def _logits(call: cst.Call) -> str | None:
    """The name that is given as logits to a loss that also gets a vocabulary."""
    given = [one.value for one in call.args if one.keyword is not None and one.keyword.value == "logits"]
    plain = [one.value for one in call.args if one.keyword is None and not one.star]
    vocabulary = [one for one in call.args if one.keyword is not None and one.keyword.value == "vocab_size"]
    if not vocabulary and len(plain) + len(given) < 3:
        return None
    found = next(iter(given or plain), None)
    return found.value if isinstance(found, cst.Name) else None


def _value(statement: cst.BaseStatement) -> cst.BaseExpression:
    assigned = assignment(statement)
    assert assigned is not None
    return assigned[1]


def _found(before: Sequence[cst.BaseStatement], given: cst.If, call: cst.Call, logits: str) -> Loss | None:
    """The nearest ``logits = self.<head>(argument)`` before the loss, with or without a cast behind it."""
    for statement in reversed(before):
        assigned = assignment(statement)
        if assigned is None or not isinstance(assigned[0], cst.Name) or assigned[0].value != logits:
            continue
        made = self_call(_uncast(assigned[1]))
        if made is not None:
            return Loss(made[0], made[1], logits, statement, given, call)
    return None


def _uncast(value: cst.BaseExpression) -> cst.BaseExpression:
    """x of ``x.float()``: the loss casts anyway."""
    for cast in _FLOATS:
        bound = cast.match(value)
        if bound is not None and isinstance(bound["__x"], cst.BaseExpression):
            return bound["__x"]
    return value


def _read(loss: Loss, before: Sequence[cst.BaseStatement], after: Sequence[cst.BaseStatement]) -> None:
    """Note what happens to the logits between head and loss, and why the site must be left alone, if it must."""
    between = before[list(before).index(loss.made) + 1 :]
    inner = loss.given.body.body
    where = next(i for i, one in enumerate(inner) if isinstance(one, cst.BaseStatement) and _is(one, loss.call))
    first = [one for one in inner[:where] if isinstance(one, cst.BaseStatement)]
    for statement in (*between, *first):
        if loss.logits in set(names(statement)) and not _known(loss, statement):
            loss.refused = "the logits are used for something else before the loss"
    words = {name for one in (*loss.call.args, cst.Arg(loss.argument), cst.Arg(loss.given.test)) for name in names(one)}
    words -= {loss.logits}
    moved = {one for statement in first if (one := _moved(loss, statement)) is not None}
    if any(binds(statement) & words for statement in (*between, *first) if _moved(loss, statement) not in moved):
        loss.refused = "what the loss is given is made after the logits"
    rest = [one for one in (*inner[where + 1 :], *after) if isinstance(one, cst.CSTNode)]
    if sum(list(names(one)).count(loss.logits) - _returned(one, loss.logits) for one in rest):
        loss.refused = "the logits are used for something else after the loss"


def _is(statement: cst.BaseStatement, call: cst.Call) -> bool:
    assigned = assignment(statement)
    return assigned is not None and assigned[1] is call


def _moved(loss: Loss, statement: cst.BaseStatement) -> str | None:
    """The name of ``labels = labels.to(logits.device)``, else None."""
    assigned = assignment(statement)
    bound = _MOVED.match(assigned[1]) if assigned is not None else None
    if assigned is None or bound is None or not isinstance(assigned[0], cst.Name):
        return None
    target, labels, logits = assigned[0].value, bound["__labels"], bound["__x"]
    fits = isinstance(labels, cst.Name) and labels.value == target
    return target if fits and isinstance(logits, cst.Name) and logits.value == loss.logits else None


def _known(loss: Loss, statement: cst.BaseStatement) -> bool:
    """Take note of a scale, a soft cap, a cast, or labels that follow the logits to their device."""
    capped = _SOFTCAP.match([statement])
    if capped is not None and isinstance(statement, cst.If) and isinstance(capped["__cap"], cst.BaseExpression):
        loss.scales["softcap"] = capped["__cap"]
        loss.skipped.append(statement.test)
        return isinstance(capped["__x"], cst.Name) and capped["__x"].value == loss.logits
    assigned = assignment(statement)
    if assigned is None or not isinstance(assigned[0], cst.Name):
        return False
    if _moved(loss, statement) is not None:
        loss.skipped.append(assigned[1])
        return True
    value = assigned[1]
    loss.skipped.append(value)
    uncast = _uncast(value)
    if assigned[0].value != loss.logits:
        return False
    if uncast is not value:
        return isinstance(uncast, cst.Name)
    if not isinstance(value, cst.BinaryOperation) or not isinstance(value.left, cst.Name) or "softcap" in loss.scales:
        return False
    if isinstance(value.operator, cst.Divide) and not loss.scales:
        loss.scales["divisor"] = value.right
    elif isinstance(value.operator, cst.Multiply) and "factor" not in loss.scales:
        loss.scales["factor"] = value.right
    else:
        return False
    return value.left.value == loss.logits and loss.logits not in set(names(value.right))


def _returned(node: cst.CSTNode, logits: str) -> int:
    """How often the name is handed out as it is: as an argument of its own name, or as an element of a tuple."""
    found = 0
    for one in walk(node):
        if isinstance(one, cst.Arg):
            kept = one.keyword is not None and one.keyword.value == "logits"
        else:
            kept = isinstance(one, cst.Element)
        if kept and isinstance(one, (cst.Arg, cst.Element)) and isinstance(one.value, cst.Name):
            found += one.value.value == logits
    return found


def guard(source: Source, site: Site[Loss]) -> str | None:
    """Decline what would be computed twice, other heads, and logits that somebody needs."""
    loss = site.found
    argument = loss.argument
    if isinstance(argument, cst.Subscript) and not any(isinstance(one, cst.Call) for one in walk(argument)):
        argument = argument.value
    if not isinstance(argument, cst.Name):
        return "the argument of the head is neither a plain name nor a slice of one"
    return loss.refused or not_linear(source, site.function, (loss.head,))


def edit(source: Source, site: Site[Loss]) -> list[Edit]:
    """Ask in front of the head; leave out what makes and changes the logits; take our loss where there is one."""
    loss, function = site.found, site.function
    anchor = source.before(loss.made)
    if anchor is None:
        return []
    words = [_argument(source, one) for one in loss.call.args if not _is_logits(one, loss)]
    stars = [one for one in words if one.startswith("**")]
    scales = [f"logits_{name}={source.code(value)}" for name, value in loss.scales.items()]
    given = ["self.loss_function", f"self.{loss.head}", source.code(loss.argument)]
    plain = [one for one in words if one not in stars]
    call = f"    {RESULT} = _amd.causal_lm_loss("
    lines = [f"{RESULT} = None", f"if {test(NAME)} and {source.code(loss.given.test)}:"]
    if len(anchor.indent) + 8 + len(", ".join([*given, *plain, *scales, *stars])) <= MAX_COLUMNS:
        lines.append(f"{call}{', '.join([*given, *plain, *scales, *stars])})")
    else:
        groups = [", ".join(group) for group in (given, plain, [*scales, *stars]) if group]
        lines += [call, *(f"        {group}," for group in groups), "    )"]
    edits = [insertion(NAME, function, anchor, lines)]
    for value in (_value(loss.made), *loss.skipped):
        capped = value in _tests(site)
        labels = _moved_value(site, value)
        text = f"{RESULT} is None and " if capped else f"{labels} if {RESULT} is not None else " if labels else AHEAD
        start, _ = source.span(value)
        edits.append(Edit(start, start, text.encode("ascii"), NAME, function.qualname))
    start, end = source.span(loss.call)
    newline, line = source.newline_after(end), source.data[source.line_start(start) : start].decode("utf-8")
    indent = line[: len(line) - len(line.lstrip())]
    chosen = choice(line, RESULT, f"if {RESULT} is not None", source.code(loss.call), indent)
    edits.append(Edit(start, end, newline.join(chosen).encode("utf-8"), NAME, function.qualname))
    return edits


def _is_logits(argument: cst.Arg, loss: Loss) -> bool:
    return isinstance(argument.value, cst.Name) and argument.value.value == loss.logits


def _argument(source: Source, argument: cst.Arg) -> str:
    keyword = f"{argument.keyword.value}=" if argument.keyword is not None else ""
    return f"{argument.star}{keyword}{source.code(argument.value)}"


def _tests(site: Site[Loss]) -> set[cst.CSTNode]:
    """Tests of soft caps among what is skipped: comparisons, where all else is a value."""
    return {one for one in site.found.skipped if isinstance(one, cst.Comparison)}


def _moved_value(site: Site[Loss], value: cst.BaseExpression) -> str | None:
    """The name of the labels in ``labels.to(logits.device)``."""
    bound = _MOVED.match(value)
    labels = bound["__labels"] if bound is not None else None
    return labels.value if isinstance(labels, cst.Name) else None


def parts(site: Site[Loss]) -> Mapping[str, str]:
    """The scales and the soft cap, where there are some."""
    return dict.fromkeys(site.found.scales, site.found.head)


RECIPE = Recipe(
    name=NAME,
    description="logits = self.<head>(h); if labels is not None: loss = self.loss_function(logits, labels, ...)",
    hint=re.compile(r"\bself\.loss_function\("),
    match=match,
    guard=guard,
    edit=edit,
    parts=parts,
)
