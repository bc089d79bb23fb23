"""The offline provider's sampler: puts a plan's operators into an order in which every shape fits, and writes the file.

Each value has a kind (sequence, image, ...) and a concrete shape; an operator applies where its input kind and its
conditions hold, and says the shape of its result. Where none of the operators that are left applies, a bridge changes
the kind. The result of all this is plain text, judged afterwards like that of a language model.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .catalogue import KINDS, Catalogue, Operator
from .expressions import evaluate, evaluate_shape
from .plan import Plan, class_name

MAX_ELEMENTS = 1 << 16
MIN_ELEMENTS = 2
_STARTS: dict[str, dict[str, list[int]]] = {
    "seq": {"b": [1, 2, 3], "s": [4, 8, 12, 16], "d": [16, 32, 64]},
    "heads": {"b": [1, 2], "n": [2, 4], "s": [4, 8, 16], "d": [8, 16]},
    "image": {"b": [1, 2], "c": [3, 4, 8, 16], "h": [8, 16], "w": [8, 16]},
    "signal": {"b": [1, 2], "c": [4, 8, 16], "l": [8, 16, 32]},
    "volume": {"b": [1, 2], "c": [2, 4, 8], "t": [2, 4], "h": [4, 8], "w": [4, 8]},
    "vec": {"b": [2, 3, 4], "d": [16, 32, 64]},
    "tokens": {"b": [1, 2], "s": [4, 8, 16]},
}


@dataclass(frozen=True)
class Value:
    """A tensor of the program that is being written."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass
class _Draft:
    """The program so far."""

    dice: random.Random
    inputs: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    inits: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    used: list[Operator] = field(default_factory=list)
    count: int = 0

    @property
    def current(self) -> Value:
        return self.values[-1]


@dataclass(frozen=True)
class Composed:
    """A program's class name and text, and the operators in it, in order, bridges included."""

    name: str
    source: str
    operators: tuple[str, ...]


def compose(plan: Plan, catalogue: Catalogue) -> Composed:
    """Write a program that has as many of the plan's operators as can be made to fit (nearly always all)."""
    draft = _Draft(random.Random(plan.seed))
    left = list(plan.operators)
    draft.dice.shuffle(left)
    # Tokens exist only at the start: an embedding must come first.
    left.sort(key=lambda one: one.inputs != ("tokens",))
    _start(draft, left[0].inputs)
    while left:
        fitting = [one for one in left if draft.current.kind in one.inputs]
        draft.dice.shuffle(fitting)
        chosen = next((one for one in fitting if _apply(draft, one)), None)
        if chosen is None:
            left = _move_on(draft, left, catalogue)
        else:
            left.remove(chosen)
    _join_ends(draft)
    name = class_name([one.name for one in draft.used])
    return Composed(name, _text(name, draft, catalogue), tuple(one.name for one in draft.used))


def _start(draft: _Draft, kinds: tuple[str, ...]) -> None:
    kind = draft.dice.choice(kinds)
    shape = tuple(draft.dice.choice(_STARTS[kind][name]) for name in KINDS[kind])
    value = Value("x" if not draft.inputs else f"x_{len(draft.inputs)}", kind, shape)
    draft.inputs.append(value)
    draft.values.append(value)


def _apply(draft: _Draft, one: Operator) -> bool:
    """Append a call of the operator on the current value; False where its conditions do not hold."""
    x = draft.current
    names: dict[str, Any] = dict(zip(KINDS[x.kind], x.shape, strict=True))
    for _ in range(4):
        names.update({key: draft.dice.choice(values) for key, values in one.pick.items()})
        if all(evaluate(condition, names) for condition in one.when):
            break
    else:
        return False
    kind = one.output or x.kind
    shape = evaluate_shape(one.shape, x.shape, names)
    if not MIN_ELEMENTS <= math.prod(shape) <= MAX_ELEMENTS or 0 in shape:
        return False
    if one.other:
        names["y"] = _partner(draft).name
        x = draft.current
    draft.count += 1
    names.update(x=x.name, m=f"m{draft.count}")
    if one.init:
        draft.inits.append(f"self.m{draft.count} = {one.init.format(**names)}")
    call = one.call or ("self.{m}({x})" if one.init else "")
    result = Value(f"x{draft.count}", kind, shape)
    draft.lines.append(f"{result.name} = {call.format(**names)}")
    draft.values.append(result)
    draft.used.append(one)
    return True


def _partner(draft: _Draft) -> Value:
    """Another value of the current shape: an earlier one, or a second branch made on the spot."""
    x = draft.current
    same = [value for value in draft.values[:-1] if (value.kind, value.shape) == (x.kind, x.shape)]
    if same:
        return draft.dice.choice(same)
    if x.kind != "tokens" and draft.dice.random() < 0.5 and len(draft.inputs) < 3:
        value = Value(f"x_{len(draft.inputs)}", x.kind, x.shape)
        draft.inputs.append(value)
        draft.values.insert(0, value)
        return value
    draft.count += 1
    branch = Value(f"x{draft.count}", x.kind, x.shape)
    draft.lines.append(f"{branch.name} = {x.name} * 0.5 + 0.1")
    draft.values.insert(len(draft.values) - 1, branch)
    return branch


def _move_on(draft: _Draft, left: list[Operator], catalogue: Catalogue) -> list[Operator]:
    """Bridge to a kind that some operator wants; give up those that no path of bridges reaches, or that never fit."""
    wanted = left[0]
    path = _path(draft.current.kind, wanted.inputs, catalogue)
    if path is None or draft.current.kind in wanted.inputs:
        return left[1:]
    for kind in path:
        bridges = [
            one
            for one in catalogue.operators["bridges"]
            if draft.current.kind in one.inputs and (one.output or "") == kind
        ]
        draft.dice.shuffle(bridges)
        if not any(_apply(draft, bridge) for bridge in bridges):
            return left[1:]
    return left


def _path(start: str, goals: tuple[str, ...], catalogue: Catalogue) -> list[str] | None:
    """The shortest chain of kinds from ``start`` to one of the goals."""
    queue: deque[tuple[str, list[str]]] = deque([(start, [])])
    seen = {start}
    while queue:
        kind, path = queue.popleft()
        if kind in goals:
            return path
        for bridge in catalogue.operators["bridges"]:
            if kind in bridge.inputs and bridge.output and bridge.output not in seen:
                seen.add(bridge.output)
                queue.append((bridge.output, [*path, bridge.output]))
    return None


def _join_ends(draft: _Draft) -> None:
    """Half of the programs end with a residual or a second result: a chain alone would be too plain a data flow."""
    x = draft.current
    same = [v for v in draft.values[:-1] if (v.kind, v.shape) == (x.kind, x.shape) and v.name.startswith("x")]
    if same and draft.dice.random() < 0.5:
        draft.count += 1
        result = Value(f"x{draft.count}", x.kind, x.shape)
        draft.lines.append(f"{result.name} = {x.name} + {draft.dice.choice(same).name}")
        draft.values.append(result)


def _text(name: str, draft: _Draft, catalogue: Catalogue) -> str:
    helpers = catalogue.with_helpers([helper for one in draft.used for helper in one.uses])
    results = [draft.current.name]
    if len(draft.values) > 4 and draft.dice.random() < 0.2:
        results.append(draft.values[len(draft.values) // 2].name)
    parts = ["import torch\nimport torch.nn as nn\nimport torch.nn.functional as F", *(one.code for one in helpers)]
    lines = [f"class {name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for line in draft.inits]
    lines += ["", f"    def forward(self, {', '.join(value.name for value in draft.inputs)}):"]
    lines += [f"        {line}" for line in draft.lines]
    lines.append(f"        return {', '.join(results)}")
    parts.append("\n".join(lines))
    inputs = ", ".join(_input(value) for value in draft.inputs)
    parts += [f"def get_inputs():\n    return [{inputs}]", "def get_init_inputs():\n    return [], {}"]
    return "\n\n\n".join(parts) + "\n"


def _input(value: Value) -> str:
    if value.kind == "tokens":
        return f"torch.randint(0, 64, {value.shape})"
    return f"torch.randn({', '.join(str(size) for size in value.shape)})"
