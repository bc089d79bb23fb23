"""The order in which a plan's operators can follow each other, by the kinds and shapes of values alone.

A program is a few chains, each from a value of its own. An operator is placed where its kind and its conditions hold;
one that changes the kind waits until nothing needs the present kind any more. Where no operator that is left applies,
another chain begins; a bridge, which only changes the kind, is the last resort. A plan that cannot be placed whole is
refused.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from .catalogue import KINDS, Catalogue, Form, Operator
from .expressions import evaluate, evaluate_shape
from .plan import Plan

Shape = tuple[int, ...]
MAX_ELEMENTS = 1 << 16
MIN_ELEMENTS = 2
TRIES = 24
MOST_CHAINS = 4
_PICKS = 4
_STARTS: dict[str, dict[str, list[int]]] = {
    "seq": {"b": [1, 2, 3], "s": [4, 8, 12, 16], "d": [16, 32, 64]},
    "heads": {"b": [1, 2], "n": [2, 4], "s": [4, 8, 16], "d": [8, 16]},
    "image": {"b": [1, 2], "c": [3, 4, 8, 16], "h": [8, 16], "w": [8, 16]},
    "signal": {"b": [1, 2], "c": [4, 8, 16], "l": [8, 16, 32]},
    "volume": {"b": [1, 2], "c": [2, 4, 8], "t": [2, 4], "h": [4, 8], "w": [4, 8]},
    "vec": {"b": [2, 3, 4], "d": [16, 32, 64]},
    "tokens": {"b": [1, 2], "s": [4, 8, 16]},
}


class Misfit(Exception):
    """A plan whose operators cannot all be placed; ``operators`` are those that were left in the best try."""

    def __init__(self, operators: list[str]) -> None:
        super().__init__(f"no place for {', '.join(operators)}")
        self.operators = operators


@dataclass(frozen=True)
class Step:
    """An operator in its place: the form, what was picked for it, the value that it takes and the one that it gives."""

    operator: Operator
    form: Form
    picks: dict[str, Any]
    kind: str
    shape: Shape
    kind_after: str
    shape_after: Shape

    @property
    def keeps(self) -> bool:
        """Say whether kind and shape stay."""
        return (self.kind, self.shape) == (self.kind_after, self.shape_after)


@dataclass
class Chain:
    """Operators that follow each other, from a value of this kind and shape."""

    kind: str
    shape: Shape
    steps: list[Step] = field(default_factory=list)

    @property
    def end(self) -> tuple[str, Shape]:
        """Kind and shape of the last value."""
        return (self.steps[-1].kind_after, self.steps[-1].shape_after) if self.steps else (self.kind, self.shape)


def arrange(plan: Plan, catalogue: Catalogue, dice: random.Random) -> list[Chain]:
    """Return chains that hold every operator of the plan, with as few bridges as some tries could do with.

    Raises:
        Misfit: not all operators could be placed.
    """
    best: list[Chain] | None = None
    fewest, left = math.inf, [one.name for one in plan.operators]
    for number in range(TRIES):
        chains, rest = _Arrangement(list(plan.operators), catalogue, dice).run()
        if rest:
            left = min(left, [one.name for one in rest], key=len)
            continue
        cost = bridges(chains) + 0.3 * max(len(chains) - 2, 0)
        if cost < fewest:
            best, fewest = chains, cost
        if fewest == 0 or (best is not None and number >= TRIES // 3):
            break
    if best is None:
        raise Misfit(left)
    return best


def bridges(chains: list[Chain]) -> int:
    """Count the bridges."""
    return sum(step.operator.category == "bridges" for chain in chains for step in chain.steps)


class _Arrangement:
    """One try."""

    def __init__(self, left: list[Operator], catalogue: Catalogue, dice: random.Random) -> None:
        self.left, self.catalogue, self.dice = left, catalogue, dice
        self.chains: list[Chain] = []

    def run(self) -> tuple[list[Chain], list[Operator]]:
        """Place what can be placed; return the chains and what is left."""
        while self.left:
            if len(self.chains) < MOST_CHAINS and self._begin():
                self._go_on(self.chains[-1])
            elif not self._bridge():
                break
        return self.chains, self.left

    def _begin(self) -> bool:
        """Start another chain with an operator that is left; False where none applies to a fresh value."""
        wanted: dict[str, int] = {}
        for one in self.left:
            for kind in one.kinds:
                wanted[kind] = wanted.get(kind, 0) + (5 if len(one.kinds) == 1 else 1)
        for _ in range(6):
            if not wanted:
                return False
            kind = "tokens" if "tokens" in wanted else self.dice.choices(list(wanted), list(wanted.values()))[0]
            chain = Chain(kind, self._start(kind))
            step = self._next(chain)
            if step is not None:
                self.chains.append(chain)
                self._place(chain, step)
                return True
            if self.dice.random() < 0.5:
                del wanted[kind]
        return False

    def _start(self, kind: str) -> Shape:
        """The shape of a value that is there, so that chains can part from one value, or of a fresh one."""
        there = [
            (value, shape)
            for chain in self.chains
            for value, shape in ((chain.kind, chain.shape), *((s.kind_after, s.shape_after) for s in chain.steps))
            if value == kind
        ]
        if there and self.dice.random() < 0.6:
            return self.dice.choice(there)[1]
        return tuple(self.dice.choice(_STARTS[kind][name]) for name in KINDS[kind])

    def _go_on(self, chain: Chain) -> None:
        while self.left:
            step = self._next(chain)
            if step is None:
                return
            self._place(chain, step)

    def _place(self, chain: Chain, step: Step) -> None:
        self.left.remove(step.operator)
        chain.steps.append(step)

    def _next(self, chain: Chain) -> Step | None:
        """The next step of a chain: what only this kind can take goes first, what changes the kind last."""
        kind, shape = chain.end
        self.dice.shuffle(self.left)
        only_here, keeping, leaving = [], [], []
        for one in self.left:
            step = self.step(one, kind, shape) if kind in one.kinds else None
            if step is None:
                continue
            if step.kind_after != kind:
                leaving.append(step)
            elif one.kinds == {kind}:
                only_here.append(step)
            else:
                keeping.append(step)
        if only_here and (not keeping or self.dice.random() < 0.6):
            return self._gentle(only_here)
        if keeping and (only_here or not leaving or self.dice.random() < 0.7):
            return self._gentle(keeping)
        return self.dice.choice(leaving) if leaving else None

    def _gentle(self, steps: list[Step]) -> Step:
        """Prefer, most of the time, a step after which others still find a shape that they can take."""
        whole = [step for step in steps if min(step.shape_after[1:]) >= 4]
        return whole[0] if whole and self.dice.random() < 0.8 else steps[0]

    def step(self, one: Operator, kind: str, shape: Shape) -> Step | None:
        """Try the forms of an operator on a value; None where none applies."""
        forms = [form for form in one.forms if kind in form.inputs]
        self.dice.shuffle(forms)
        for form in forms:
            names: dict[str, Any] = dict(zip(KINDS[kind], shape, strict=True))
            for _ in range(_PICKS):
                picks = {key: self.dice.choice(values) for key, values in form.pick.items()}
                names.update(picks)
                if all(evaluate(condition, names) for condition in form.when):
                    break
            else:
                continue
            after = evaluate_shape(form.shape, shape, names)
            if MIN_ELEMENTS <= math.prod(after) <= MAX_ELEMENTS and 0 not in after:
                return Step(one, form, picks, kind, shape, form.output or kind, after)
        return None

    def _bridge(self) -> bool:
        """Bridge the end of a chain to a kind that some operator takes; False where no way leads there."""
        for one in self.left:
            for chain in self.dice.sample(self.chains, len(self.chains)):
                path = self._path(chain.end[0], one.kinds)
                if path and self._walk(chain, path):
                    before = len(self.left)
                    self._go_on(chain)
                    if len(self.left) < before:
                        return True
        return False

    def _walk(self, chain: Chain, path: list[str]) -> bool:
        for kind in path:
            found = [
                step
                for bridge in self.catalogue.operators["bridges"]
                if chain.end[0] in bridge.kinds
                and (step := self.step(bridge, *chain.end)) is not None
                and step.kind_after == kind
            ]
            if not found:
                return False
            chain.steps.append(self.dice.choice(found))
        return True

    def _path(self, start: str, goals: frozenset[str]) -> list[str]:
        """The shortest chain of kinds from ``start`` to one of the goals; empty where there is none."""
        queue: deque[tuple[str, list[str]]] = deque([(start, [])])
        seen = {start}
        while queue:
            kind, path = queue.popleft()
            if kind in goals:
                return path
            for bridge in self.catalogue.operators["bridges"]:
                for form in bridge.forms:
                    if kind in form.inputs and form.output and form.output not in seen:
                        seen.add(form.output)
                        queue.append((form.output, [*path, form.output]))
        return []
