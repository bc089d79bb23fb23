"""The library mapping, kept as data in `table.json`: what is looked for, what replaces it, and who says so."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..transaction.decode import Reader, parse

SCHEMA = "amd-overlay.scan-table/1"
AUTOMATIC, PARTIAL, MANUAL, NONE = "automatic", "partial", "manual", "none"
KINDS = ("headers", "symbols", "links", "imports", "requirements", "build", "kernel", "python", "text")
"""headers: #include; symbols: C++ names; links: linker and CMake names; imports: Python modules; requirements:
distributions; build, kernel, python, text: expressions for those files, and for all files."""

_PATH = Path(__file__).with_name("table.json")


@dataclass(frozen=True)
class Change:
    """A header or linker option, and what it becomes."""

    old: str
    new: str


@dataclass(frozen=True)
class Entry:
    """One NVIDIA library or habit."""

    id: str
    nvidia: str
    amd: str
    hipify: str
    category: str
    header: Change | None
    link: Change | None
    differs: str
    sources: tuple[str, ...]
    patterns: dict[str, tuple[str, ...]]
    calls: dict[str, str]
    """Calls that have a counterpart of their own, and its name."""

    @property
    def manual(self) -> bool:
        """Tell whether a person has to do something that hipify does not."""
        return self.hipify in (MANUAL, NONE)


@lru_cache(maxsize=1)
def entries() -> tuple[Entry, ...]:
    """Return the mapping. MalformedError and ValueError would be bugs of ours: a test reads the file."""
    reader = parse(_PATH.read_bytes(), "table.json")
    if reader.text("schema") != SCHEMA:
        raise ValueError(f"table.json: found {reader.text('schema')}, expected {SCHEMA}")
    return tuple(_entry(one) for one in reader.objects("entries"))


def _entry(reader: Reader) -> Entry:
    patterns = reader.child("patterns")
    unknown = set(patterns.raw) - set(KINDS)
    if unknown or reader.text("hipify") not in (AUTOMATIC, PARTIAL, MANUAL, NONE):
        raise ValueError(f"{reader.where}: {reader.text('id')} has unknown kinds {unknown} or hipify value")
    return Entry(
        id=reader.matching("id", re.compile(r"[a-z0-9-]+")),
        nvidia=reader.text("nvidia"),
        amd=reader.text("amd"),
        hipify=reader.text("hipify"),
        category=reader.text("category"),
        header=_change(reader, "header"),
        link=_change(reader, "link"),
        differs=reader.text("differs"),
        sources=reader.texts("sources"),
        patterns={kind: patterns.texts(kind) for kind in patterns.raw},
        calls=_calls(reader),
    )


def _calls(reader: Reader) -> dict[str, str]:
    if "calls" not in reader.raw:
        return {}
    calls = reader.child("calls")
    return {name: calls.text(name) for name in calls.raw}


def _change(reader: Reader, key: str) -> Change | None:
    if reader.get(key) is None:
        return None
    return Change(reader.child(key).text("from"), reader.child(key).text("to"))
