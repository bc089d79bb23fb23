"""A reader of Dockerfiles, as far as ours goes: stages, their instructions in order, and the shell lines of RUN."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """``keyword`` in capitals, the rest as one line, flags (``--mount=...``) apart."""

    keyword: str
    value: str
    flags: tuple[str, ...] = ()


@dataclass
class Stage:
    """One ``FROM ... AS name`` and what follows it."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, keyword: str) -> list[Instruction]:
        return [one for one in self.instructions if one.keyword == keyword]

    def defaults(self) -> dict[str, str]:
        """ARG names with their defaults."""
        parts = [one.value.partition("=") for one in self.all("ARG")]
        return {name: value for name, _, value in parts}


def read(path: Path) -> list[Stage]:
    """Return the stages; what stands before the first FROM belongs to a stage without a name."""
    stages = [Stage("", "")]
    for line in _logical_lines(path.read_text("utf-8")):
        keyword, _, value = line.partition(" ")
        flags = []
        while (found := re.match(r"(--[a-z]+=\S+)\s+", value)) is not None:
            flags.append(found[1])
            value = value[found.end() :]
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            stages.append(Stage(name, base))
            continue
        stages[-1].instructions.append(Instruction(keyword, value, tuple(flags)))
    return stages


def _logical_lines(text: str) -> list[str]:
    lines: list[str] = []
    going_on = False
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        part = line.strip()
        end = part.endswith("\\")
        part = part.removesuffix("\\").strip()
        if going_on:
            lines[-1] += " " + part
        else:
            lines.append(part)
        going_on = end
    return lines
