"""A class that is being written: its parameters, its attributes, the statements of its forward, and the values in them.

Sizes are never literals where a name can say them: in ``__init__`` a dimension is a parameter or an expression over
parameters, in ``forward`` it is read from the value itself.
"""

from __future__ import annotations

import ast
import random
import re
from dataclasses import dataclass, field
from typing import Any

from .arrange import Shape, Step
from .catalogue import KINDS

_LONGEST = 30
_WORDS = re.compile(r"[A-Za-z_]\w*")
_ATOM = re.compile(r"\w+(\.\w+)?|'[^']*'")
# What a parameter of __init__ is called that stands for a dimension, by kind and dimension.
_DIMENSIONS = {
    ("seq", "s"): "length", ("seq", "d"): "dim", ("heads", "n"): "heads", ("heads", "s"): "length",
    ("heads", "d"): "head_dim", ("image", "c"): "channels", ("image", "h"): "height", ("image", "w"): "width",
    ("signal", "c"): "channels", ("signal", "l"): "length", ("volume", "c"): "channels", ("volume", "t"): "frames",
    ("volume", "h"): "height", ("volume", "w"): "width", ("vec", "d"): "features", ("tokens", "s"): "length",
}  # fmt: skip
# The same for what is picked.
_PICKS = {
    "o": "out_features", "k": "kernel_size", "n": "num_heads", "f": "hidden", "hd": "head_dim", "kv": "num_kv_heads",
    "e": "num_experts", "g": "groups", "r": "rank", "d": "embed_dim", "bias": "bias", "eps": "eps", "cap": "cap",
}  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A tensor of the class that is being written; ``sizes`` says each dimension as ``__init__`` would."""

    name: str
    kind: str
    shape: Shape
    sizes: tuple[str, ...]

    @property
    def form(self) -> tuple[str, Shape]:
        """What has to agree for one value to stand for another."""
        return self.kind, self.shape


@dataclass
class Scope:
    """One class. ``outer`` is the class that makes it; the outermost one gets its parameters from get_init_inputs."""

    dice: random.Random
    name: str
    named: bool
    """Whether sizes become parameters at all."""
    outer: Scope | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    """What the one who makes the class passes for each."""
    inits: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    loose: list[Value] = field(default_factory=list)
    """Values that nothing reads yet."""
    helpers: list[str] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    def fresh(self, base: str) -> str:
        """A name that the class does not have yet."""
        self._counts[base] = self._counts.get(base, 0) + 1
        return f"{base}{self._counts[base]}"

    def parameter(self, base: str, value: str) -> str:
        """A parameter of this name (or one like it) with this value."""
        name, number = base, 1
        while name in self.parameters and self.parameters[name] != value:
            number += 1
            name = f"{base}_{number}"
        self.parameters[name] = value
        return name

    def sized(self, kind: str, shape: Shape, outer: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """Say the dimensions of an input: by parameters, to which the outer class passes what they are there."""
        sizes = []
        for index, (dimension, size) in enumerate(zip(KINDS[kind], shape, strict=True)):
            base = _DIMENSIONS.get((kind, dimension))
            text = outer[index] if outer else str(size)
            sizes.append(self.parameter(base, text) if base and self.named else str(size))
        return tuple(sizes)

    def take(self, kind: str, shape: Shape, sizes: tuple[str, ...]) -> Value:
        """Another argument of forward."""
        value = Value("x" if not self.inputs else f"y{len(self.inputs)}", kind, shape, sizes)
        self.inputs.append(value)
        self.values.append(value)
        return value

    def add(self, value: Value, read: list[Value]) -> Value:
        """A value that a statement made from others."""
        self.values.append(value)
        self.loose = [one for one in self.loose if one not in read]
        self.loose.append(value)
        return value

    def picked(self, key: str, value: Any) -> str:
        """Say something that was picked: as it is, or by a parameter."""
        text = str(value)
        base = _PICKS.get(key)
        if not (base and self.named and self.dice.random() < 0.5):
            return text
        if self.outer is not None:
            return self.parameter(base, self.outer.picked(key, value))
        return self.parameter(base, text)

    def after(self, step: Step, x: Value, picks: dict[str, str], name: str) -> Value:
        """The value that a step gives, its dimensions said by the rule of its form."""
        parts = ast.parse(step.form.shape, mode="eval").body
        nodes = parts.elts if isinstance(parts, ast.Tuple) else [parts]
        known = {**dict(zip(KINDS[x.kind], x.sizes, strict=True)), **picks}
        sizes: list[str] = []
        for index, node in enumerate(nodes):
            if isinstance(node, ast.Constant) and node.value is Ellipsis:
                count = len(x.sizes) - (len(nodes) - 1)
                sizes += x.sizes[index : index + count]
            else:
                sizes.append(substituted(ast.unparse(node), known))
        said = [
            text if len(text) <= _LONGEST and _WORDS.search(text) else str(size)
            for text, size in zip(sizes, step.shape_after, strict=True)
        ]
        return Value(name, step.kind_after, step.shape_after, tuple(said))

    def used(self) -> list[str]:
        """The parameters that are read, in order."""
        words = {word for line in self.inits for word in _WORDS.findall(line)}
        return [name for name in self.parameters if name in words]

    def text(self, results: list[str]) -> str:
        """The class."""
        lines = [f"class {self.name}(nn.Module):"]
        if self.inits:
            lines += [
                f"    def __init__({', '.join(['self', *self.used()])}):",
                "        super().__init__()",
                *(f"        {line}" for text in self.inits for line in text.splitlines()),
                "",
            ]
        lines.append(f"    def forward({', '.join(['self', *(one.name for one in self.inputs)])}):")
        lines += [f"        {line}" for line in self.lines]
        return "\n".join([*lines, f"        return {', '.join(results)}"])


def substituted(text: str, names: dict[str, str]) -> str:
    """Put texts in the place of names, in parentheses where they are more than a word."""

    def put(found: re.Match[str]) -> str:
        value = names.get(found[0])
        if value is None:
            return found[0]
        return value if _ATOM.fullmatch(value) else f"({value})"

    return names[text] if text in names else _WORDS.sub(put, text)


def wrapped(text: str) -> str:
    """A text that can stand inside an expression."""
    call = text.endswith(")") and text.startswith("nn.")
    return text if call or _ATOM.fullmatch(text) else f"({text})"
