"""What an overlaid text asks for at which place: read off its edits, so that new recipes appear by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SWITCH = re.compile(rb"\b_amd\.on\.(\w+)")
_CALL = re.compile(rb"\b_amd\.(\w+)\(")
_REACH = 400  # bytes in front of a guard in which the call of a conditional expression begins


@dataclass(frozen=True)
class Point:
    """One integration point: the class method or function of a modeling module that a switch changes."""

    module: str
    qualname: str
    switch: str

    @property
    def owner(self) -> str:
        """The class, or the function where it is no method."""
        return self.qualname.partition(".")[0]

    @property
    def is_method(self) -> bool:
        """True for ``Class.forward``."""
        return "." in self.qualname

    @property
    def name(self) -> str:
        """A name for files and tables."""
        return f"{self.switch}.{self.owner}"


def functions_of(texts: Iterable[bytes]) -> dict[str, list[str]]:
    """Return which functions of amd_ops the guards of each switch call."""
    found: dict[str, list[str]] = {}
    for text in texts:
        for guard in _SWITCH.finditer(text):
            known = found.setdefault(guard[1].decode(), [])
            known += [name for name in [_called(text, guard)] if name and name not in known]
    return found


def _called(text: bytes, guard: re.Match[bytes]) -> str:
    """A guard with a colon stands before its call; one in ``ours if guard else stock`` behind it."""
    line_end = text.find(b"\n", guard.end())
    if text[guard.end() : line_end].rstrip().endswith(b":"):
        following = _CALL.search(text, guard.end())
        return following[1].decode() if following else ""
    before = _CALL.findall(text, max(0, guard.start() - _REACH), guard.start())
    return before[-1].decode() if before else ""


def points_of(module: str, text: bytes) -> list[Point]:
    """Return every integration point of an overlaid text, in the order of the text."""
    found: dict[Point, None] = {}
    owner = function = ""
    for line in text.splitlines():
        if match := re.match(rb"(class|def)\s+(\w+)", line):
            owner, function = match[2].decode(), ""
        elif match := re.match(rb"    (?:async )?def\s+(\w+)", line):
            function = match[1].decode()
        for switch in _SWITCH.findall(line):
            qualname = f"{owner}.{function}" if function else owner
            found[Point(module, qualname, switch.decode())] = None
    return list(found)
