"""What an overlaid text asks for at which place: read off its edits, so that new recipes appear by themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SWITCH = re.compile(rb"\b_amd\.on\.(\w+)")
_CALL = re.compile(rb"\b_amd\.(\w+)\(")
_ON_SELF = re.compile(rb"\b_amd\.(?!on\b)\w+\(\s*(self\b(?:\.(\w+))?)?")
_BEGUN = re.compile(rb"\b_amd\.\w+\(\s*$")
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
    """A guard with a colon stands before its call; one in ``ours if guard else stock`` behind it.

    What follows the switch on the guard's own line only asks whether the call may be made.
    """
    line_end = text.find(b"\n", guard.end())
    if text[guard.end() : line_end].rstrip().endswith(b":"):
        following = _CALL.search(text, line_end)
        return following[1].decode() if following else ""
    own = text[text.rfind(b"\n", 0, guard.start()) + 1 : guard.start()]
    begun = own.lstrip().startswith((b"if ", b")"))  # on a line above
    before = _CALL.findall(text, max(0, guard.start() - _REACH) if begun else guard.start() - len(own), guard.start())
    return before[-1].decode() if before else ""


def points_of(module: str, text: bytes) -> list[Point]:
    """Return every integration point of an overlaid text, in the order of the text."""
    found: dict[Point, None] = {}
    for qualname, line in _lines(text):
        for switch in _SWITCH.findall(line):
            found[Point(module, qualname, switch.decode())] = None
    return list(found)


def needs_of(text: bytes) -> dict[str, list[str] | None]:
    """Return, by qualified name, the children of a module that the edits of a method use; None where it is all of them.

    ``_amd.apply_linear(self.lm_head, ...)`` uses ``lm_head`` alone, ``_amd.qkv_proj(self, ...)`` the module.
    """
    found: dict[str, list[str] | None] = {}
    begun = b""
    for qualname, read in _lines(text):
        line = begun + read
        begun = line.rstrip() if _BEGUN.search(line) else b""  # its arguments begin on the next line
        if begun:
            continue
        for call in _ON_SELF.finditer(line):
            known = found.setdefault(qualname, [])
            if not call[2]:
                found[qualname] = None
            elif known is not None and call[2].decode() not in known:
                known.append(call[2].decode())
    return found


def _lines(text: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield every line below a class or function with the qualified name of what it belongs to."""
    owner = function = ""
    for line in text.splitlines():
        if match := re.match(rb"(class|def)\s+(\w+)", line):
            owner, function = match[2].decode(), ""
        elif match := re.match(rb"    (?:async )?def\s+(\w+)", line):
            function = match[1].decode()
        yield f"{owner}.{function}" if function else owner, line
