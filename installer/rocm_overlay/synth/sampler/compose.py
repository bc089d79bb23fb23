"""The offline provider's sampler: writes the file of a program whose operators have been put into an order.

Runs of operators become classes of their own, loops over several of them, and nn.Sequential; operators that take two
values join branches, close residuals, or bring in another input. The result is plain text, judged afterwards like that
of a language model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from .arrange import Chain, Misfit, Step, arrange, bridges
from .catalogue import KINDS, Catalogue
from .plan import DRAWN, Plan, class_name
from .scope import Scope, Value, substituted, wrapped

_BLOCKS = {
    "seq": "TokenBlock", "heads": "HeadBlock", "image": "ImageBlock", "signal": "SignalBlock",
    "volume": "VolumeBlock", "vec": "FeatureBlock", "tokens": "EmbeddingBlock",
}  # fmt: skip
_LONGEST_BLOCK = 6
_MOST_RESULTS = 3
_LONG = 6  # operators of a program in which two chains may be joined by a bridge
_MOST_LOOPED = 4  # operators in a block that is run several times
MOST_BRIDGED = 0.08


@dataclass(frozen=True)
class Composed:
    """A program's class name and text, the plan's operators in the order in which they stand in it, and the bridges."""

    name: str
    source: str
    operators: tuple[str, ...]
    bridges: int


def compose(plan: Plan, catalogue: Catalogue) -> Composed:
    """Write a program that has all of the plan's operators.

    Raises:
        Misfit: they cannot all be placed.
    """
    dice = random.Random(plan.seed)
    unwritten = [one.name for one in plan.operators if not one.forms]
    if unwritten:
        raise Misfit(unwritten)
    chains = arrange(plan, catalogue, dice)
    steps = [step for chain in chains for step in chain.steps]
    names = tuple(step.operator.name for step in steps if step.operator.category != "bridges")
    name = class_name(names)
    writer = _Writer(Scope(dice, name, dice.random() < 0.9), catalogue)
    bridged = bridges(chains)
    bridged += writer.write(chains, spare=max(len(steps) * MOST_BRIDGED, float(len(steps) >= _LONG)) - bridged)
    return Composed(name, writer.text(), names, bridged)


def place(plan: Plan, catalogue: Catalogue) -> None:
    """Make sure that a plan's operators fit together. Those that only have a name are left to whoever writes them.

    Raises:
        Misfit: they do not.
    """
    written = {kind: tuple(one for one in getattr(plan, kind) if one.forms) for kind in DRAWN}
    if any(written.values()):
        arrange(Plan(plan.seed, **written), catalogue, random.Random(plan.seed))


@dataclass
class _Writer:
    main: Scope
    catalogue: Catalogue
    classes: list[str] = field(default_factory=list)
    helpers: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    flags: int = 0
    loops: int = 0
    _blocks: dict[str, int] = field(default_factory=dict)

    @property
    def dice(self) -> random.Random:
        return self.main.dice

    def write(self, chains: list[Chain], spare: float) -> int:
        """Write forward; return how many bridges joined the ends of chains."""
        for chain in chains:
            same = [one for one in self.main.values if one.form == (chain.kind, chain.shape)]
            if same and (chain.kind == "tokens" or self.dice.random() < 0.8):
                value = self.dice.choice(same)
            else:
                sizes = self.main.sized(chain.kind, chain.shape)
                value = self.main.take(chain.kind, chain.shape, sizes)
            for part in self._parts(chain.steps):
                value = self._part(part, value)
        return self._finish(spare)

    def _finish(self, spare: float) -> int:
        """Return what nothing has read: as several results, or joined to one."""
        ends = [one for one in self.main.values if one in self.main.loose]
        joined = 0
        while len(ends) > 1 and (len(ends) > _MOST_RESULTS or (joined + 1 <= spare and self.dice.random() < 0.6)):
            side, last = ends.pop(0), ends.pop()
            name = self.main.fresh("x")
            gate = self.dice.choice(["{x} + {y}.mean()", "{x} * torch.sigmoid({y}.mean())", "{x} - {y}.amax()"])
            self.main.lines.append(f"{name} = {gate.format(x=last.name, y=side.name)}")
            ends.append(self.main.add(Value(name, *last.form, last.sizes), [last, side]))
            joined += 1
        self.results = [one.name for one in ends]
        return joined

    def _parts(self, steps: list[Step]) -> list[list[Step]]:
        """Cut a chain into runs that are written in one way each."""
        parts: list[list[Step]] = []
        index = 0
        while index < len(steps):
            length = self.dice.choice([1, 2, 3, 3, 4, 5, _LONGEST_BLOCK])
            parts.append(steps[index : index + length])
            index += length
        return parts

    def _part(self, steps: list[Step], x: Value) -> Value:
        """Write a run of operators: as a class of its own, several times over, or as statements."""
        if len(steps) < 2 or self.dice.random() < 0.3:
            return self._chain(self.main, steps, x)
        again = (steps[-1].kind_after, steps[-1].shape_after) == x.form
        loop = again and len(steps) <= _MOST_LOOPED and self.loops < 2 and self.dice.random() < 0.6
        return self._block(steps, x, loop)

    def _block(self, steps: list[Step], x: Value, loop: bool) -> Value:
        base = _BLOCKS[x.kind]
        self._blocks[base] = self._blocks.get(base, 0) + 1
        number = self._blocks[base]
        inner = Scope(self.dice, base if number == 1 else f"{base}{number}", self.main.named, self.main)
        start = inner.take(*x.form, inner.sized(*x.form, x.sizes))
        end = self._chain(inner, steps, start)
        others = [self._partner(self.main, one, x) for one in inner.inputs[1:]]
        self.classes.append(inner.text([end.name]))
        passed = {name: inner.parameters[name] for name in inner.used()}
        call = f"{inner.name}({', '.join(passed.values())})"
        sizes = tuple(substituted(text, inner.parameters) for text in end.sizes)
        if loop and not others:
            return self._loop(call, x, Value("", *end.form, sizes))
        attribute = self.main.fresh("block")
        self.main.inits.append(f"self.{attribute} = {call}")
        name = self.main.fresh("x")
        arguments = ", ".join([x.name, *(one.name for one in others)])
        self.main.lines.append(f"{name} = self.{attribute}({arguments})")
        return self.main.add(Value(name, *end.form, sizes), [x, *others])

    def _loop(self, call: str, x: Value, end: Value) -> Value:
        """Run a block several times: as many blocks, or one block with the same weights."""
        self.loops += 1
        main = self.main
        times = "2"
        if main.named:
            times = main.parameter("depth", times)
        name = main.fresh("x")
        main.lines.append(f"{name} = {x.name}")
        if self.dice.random() < 0.6:
            attribute = main.fresh("blocks")
            main.inits.append(f"self.{attribute} = nn.ModuleList([{call} for _ in range({times})])")
            main.lines += [f"for block in self.{attribute}:", f"    {name} = block({name})"]
        else:
            attribute = main.fresh("block")
            main.inits.append(f"self.{attribute} = {call}")
            if times.isidentifier():
                setting = f"self.{times} = {times}"
                main.inits += [] if setting in main.inits else [setting]
                times = f"self.{times}"
            main.lines += [f"for _ in range({times}):", f"    {name} = self.{attribute}({name})"]
        return main.add(Value(name, end.kind, end.shape, end.sizes), [x])

    def _chain(self, scope: Scope, steps: list[Step], x: Value) -> Value:
        """Write operators one after the other, with branches where one of them joins two values."""
        index = 0
        while index < len(steps):
            join = self._join_ahead(steps, index, x)
            run = self._pure_run(steps, index)
            if join is not None and self.dice.random() < 0.7:
                part = self.dice.randint(index, join - 1)
                side = self._chain(scope, steps[index:part], x) if part > index else x
                other = self._chain(scope, steps[part:join], x)
                x = self._statement(scope, steps[join], other, side)
                index = join + 1
            elif run > 1 and self.dice.random() < 0.6:
                x = self._sequential(scope, steps[index : index + run], x)
                index += run
            else:
                x = self._statement(scope, steps[index], x)
                index += 1
        return x

    def _join_ahead(self, steps: list[Step], index: int, x: Value) -> int | None:
        """The next operator that takes two values, where everything up to it keeps kind and shape."""
        for number in range(index, min(index + 5, len(steps))):
            step = steps[number]
            if step.form.other:
                return number if number > index and (step.kind, step.shape) == x.form else None
            if not step.keeps:
                return None
        return None

    def _pure_run(self, steps: list[Step], index: int) -> int:
        """How many operators from here on are modules that take one value and nothing else."""
        end = index
        while end < len(steps) and steps[end].form.init and not steps[end].form.call and not steps[end].form.other:
            end += 1
        return end - index

    def _sequential(self, scope: Scope, steps: list[Step], x: Value) -> Value:
        attribute, name = scope.fresh("net"), scope.fresh("x")
        inits, value = [], x
        for step in steps:
            text, picks = self._init(scope, step, value)
            inits.append(f"    {text},")
            value = scope.after(step, value, picks, name)
        scope.inits.append("\n".join([f"self.{attribute} = nn.Sequential(", *inits, ")"]))
        scope.lines.append(f"{name} = self.{attribute}({x.name})")
        return scope.add(value, [x])

    def _init(self, scope: Scope, step: Step, x: Value) -> tuple[str, dict[str, str]]:
        """What makes the operator's module or weight, and how each pick is said there."""
        self.helpers += step.form.uses
        picks = {key: scope.picked(key, value) for key, value in step.picks.items()} if step.form.init else {}
        picks = {**{key: str(value) for key, value in step.picks.items()}, **picks}
        names = {**dict(zip(KINDS[x.kind], x.sizes, strict=True)), **picks}
        return step.form.init.format(**{key: wrapped(text) for key, text in names.items()}), picks

    def _statement(self, scope: Scope, step: Step, x: Value, other: Value | None = None) -> Value:
        """Write one operator."""
        form = step.form
        if form.other and other is None:
            other = self._partner(scope, x, x)
        init, picks = self._init(scope, step, x)
        word = "".join(c for c in step.operator.name.rpartition(".")[2].lower() if c.isalnum())
        attribute = scope.fresh("weight" if init.startswith("nn.Parameter") else word) if init else ""
        if init:
            scope.inits.append(f"self.{attribute} = {init}")
        names = {one: f"{x.name}.shape[{index}]" for index, one in enumerate(KINDS[x.kind])}
        names.update({key: str(value) for key, value in step.picks.items()})
        names.update(x=x.name, m=attribute, y=other.name if other else "")
        call = (form.call or "self.{m}({x})").format(**names)
        value = scope.after(step, x, picks, scope.fresh("x"))
        if step.keeps and other is None and scope.named and self.flags < 2 and self.dice.random() < 0.08:
            self._optional(scope, f"use_{word}", value.name, x.name, call)
        else:
            scope.lines.append(f"{value.name} = {call}")
        return scope.add(value, [x, *([other] if other else [])])

    def _optional(self, scope: Scope, flag: str, name: str, x: str, call: str) -> None:
        """An operator that an argument of the constructor can switch off; it is on."""
        self.flags += 1
        text = self.main.parameter(flag, "True")
        if scope is not self.main:
            text = scope.parameter(flag, text)
        setting = f"self.{text} = {text}"
        scope.inits += [] if setting in scope.inits else [setting]
        scope.lines += [f"{name} = {x}", f"if self.{text}:", f"    {name} = {call}"]

    def _partner(self, scope: Scope, wanted: Value, x: Value) -> Value:
        """A second value like ``wanted``: one that nothing reads yet, an earlier one, or another input."""
        loose = [one for one in scope.loose if one.form == wanted.form and one != x]
        if loose:
            return self.dice.choice(loose)
        same = [one for one in scope.values if one.form == wanted.form and one != x]
        if same and (self.dice.random() < 0.6 or len(scope.inputs) > 2):
            return self.dice.choice(same)
        sizes = x.sizes if x.form == wanted.form else scope.sized(*wanted.form)
        return scope.take(*wanted.form, sizes)

    def text(self) -> str:
        """The whole file."""
        helpers = self.catalogue.with_helpers(self.helpers)
        main = self.main
        parts = ["import torch\nimport torch.nn as nn\nimport torch.nn.functional as F"]
        parts += [*(one.code for one in helpers), *self.classes, main.text(self.results)]
        inputs = ", ".join(_input(value) for value in main.inputs)
        used = main.used() if main.inits else []
        cut = self.dice.randint(0, len(used))
        given = ", ".join(main.parameters[name] for name in used[:cut])
        named = ", ".join(f'"{name}": {main.parameters[name]}' for name in used[cut:])
        parts.append(f"def get_inputs():\n    return [{inputs}]")
        parts.append(f"def get_init_inputs():\n    return [{given}], {{{named}}}")
        return "\n\n\n".join(parts) + "\n"


def _input(value: Value) -> str:
    if value.kind == "tokens":
        return f"torch.randint(0, 64, {value.shape})"
    return f"torch.randn({', '.join(str(size) for size in value.shape)})"
