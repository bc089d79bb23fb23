"""Walks a tree and matches every file against the mapping. Reads only; sure about place, modest about meaning."""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ...errors import UsageError
from . import table
from .comments import without_comments
from .table import Entry

MAX_BYTES = 2_000_000
IGNORE = "overlay-scan: ignore"
_SKIPPED_FOLDERS = frozenset(
    {".git", ".hg", ".svn", ".jj", "__pycache__", "node_modules", ".venv", "venv", ".tox", ".nox", ".mypy_cache",
     ".ruff_cache", ".pytest_cache", ".eggs"}
)  # fmt: skip
_C_SUFFIXES = frozenset({".cu", ".cuh", ".c", ".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".hxx", ".inl", ".inc"})
_REQUIREMENTS = re.compile(r"(?:.*[-_])?requirements?(?:[-_.].*)?\.(?:txt|in)|constraints.*\.txt|environment.*\.ya?ml")
_REQUIREMENT_FILES = frozenset({"pyproject.toml", "setup.cfg", "Pipfile", "poetry.lock", "uv.lock", "setup.py"})
_BUILD_NAMES = frozenset({"CMakeLists.txt", "Makefile", "makefile", "GNUmakefile", "setup.py", "meson.build", "BUILD"})
_SHELL = frozenset({".sh", ".bash", ".yml", ".yaml", ".toml", ".cfg", ".mk"})


@dataclass(frozen=True)
class Kind:
    """What a file is: how its comments look, and which kinds of patterns apply to it."""

    language: str
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One place: path below the root, line and column from 1, the text that matched and its entry."""

    entry: Entry
    path: str
    line: int
    column: int
    text: str
    snippet: str

    @property
    def replacement(self) -> str | None:
        """The call that takes the place of this one, where there is one of its own."""
        return self.entry.calls.get(self.text)


@dataclass(frozen=True)
class Scan:
    """Everything that one run saw. ``skipped`` holds (path, reason)."""

    root: Path
    files: int
    findings: tuple[Finding, ...]
    skipped: tuple[tuple[str, str], ...] = field(default=())

    @property
    def code(self) -> int:
        """The exit code: 1 when something needs manual work."""
        return int(any(one.entry.manual for one in self.findings))

    def by_entry(self) -> list[tuple[Entry, int, int]]:
        """Return (entry, places, files), manual work first, then by number of places."""
        places = Counter(one.entry.id for one in self.findings)
        files = Counter(name for name, _ in {(one.entry.id, one.path) for one in self.findings})
        known = {one.entry.id: one.entry for one in self.findings}
        order = sorted(known, key=lambda name: (not known[name].manual, -places[name], name))
        return [(known[name], places[name], files[name]) for name in order]


def scan(path: Path, exclude: Sequence[str] = (), *, progress: Callable[[int], None] | None = None) -> Scan:
    """Look through a file or a folder. Raises UsageError for a path that does not exist."""
    if not path.exists():
        raise UsageError(
            "no-path",
            f"{path}: there is no such file or folder.",
            remedy="pass the folder of the project, for example `overlay scan .`",
            paths=[path],
        )
    root = path if path.is_dir() else path.parent
    findings: list[Finding] = []
    skipped: list[tuple[str, str]] = []
    count = 0
    for file in _files(path, root, exclude):
        name = file.relative_to(root).as_posix()
        kind = kind_of(file)
        if kind is None:
            continue
        text, why = _read(file)
        if text is None:
            skipped.append((name, why))
            continue
        count += 1
        findings += sorted(look(name, text, kind), key=lambda one: (one.line, one.column))
        if progress is not None:
            progress(count)
    return Scan(root, count, tuple(findings), tuple(skipped))


def kind_of(file: Path) -> Kind | None:
    """Say how to read a file, None for one that is not looked at."""
    name, suffix = file.name, file.suffix.lower()
    if suffix in _C_SUFFIXES:
        return Kind("c", ("headers", "symbols", "kernel", "text"))
    if suffix in (".py", ".pyi", ".pyx"):
        extra = ("build", "links", "requirements") if name == "setup.py" else ()
        # Kernels are also written as texts inside Python, and headers and symbols come with them.
        return Kind("python", ("imports", "kernel", "python", "headers", "symbols", "text", *extra))
    if _REQUIREMENTS.fullmatch(name) or name in _REQUIREMENT_FILES:
        return Kind("hash", ("requirements", "text"))
    if name in _BUILD_NAMES or suffix in (".cmake", ".mk", ".bzl"):
        return Kind("hash", ("build", "links", "text"))
    if suffix in _SHELL or name.startswith("Dockerfile") or suffix == ".dockerfile":
        return Kind("hash", ("build", "text"))
    return None


def look(path: str, text: str, kind: Kind) -> Iterator[Finding]:
    """Match one text. Lines that carry the ignore mark are left out."""
    code = without_comments(text, kind.language)
    lines = text.splitlines() if "\f" not in text else text.split("\n")
    seen: set[tuple[int, str, str]] = set()
    digests = {name: make(code) for name, make in _DIGESTS.items() if name in kind.patterns}
    for entry, sort, pattern in _compiled(kind.patterns):
        if sort in digests and pattern.search(digests[sort]) is None:
            continue
        for match in pattern.finditer(code):
            start = match.start("at") if "at" in pattern.groupindex else match.start()
            line = code.count("\n", 0, start) + 1
            snippet = lines[line - 1] if line <= len(lines) else ""
            mark = (line, entry.id, match[0] if entry.calls else "")
            if mark in seen or IGNORE in snippet:
                continue
            seen.add(mark)
            column = start - (code.rfind("\n", 0, start) + 1) + 1
            found = match["at"] if "at" in pattern.groupindex else match[0]
            yield Finding(entry, path, line, column, found.strip()[:120], snippet.strip()[:200])


@lru_cache(maxsize=32)
def _compiled(kinds: tuple[str, ...]) -> tuple[tuple[Entry, str, re.Pattern[str]], ...]:
    made = []
    for entry in table.entries():
        for kind in kinds:
            for expression in entry.patterns.get(kind, ()):
                made.append((entry, kind, re.compile(_WRAPPED.get(kind, "{0}").format(expression), re.MULTILINE)))
    return tuple(made)


def _names(code: str) -> str:
    """Return every name of a text once."""
    return "\n".join(dict.fromkeys(re.findall(r"[A-Za-z_]\w*(?:::\w+)*", code)))


def _lines_with(*words: str) -> Callable[[str], str]:
    return lambda code: "\n".join(line for line in code.split("\n") if any(word in line for word in words))


# A pattern that finds nothing in the digest of a text finds nothing in the text: most of them end there.
_DIGESTS: dict[str, Callable[[str], str]] = {
    "symbols": _names,
    "imports": _lines_with("import"),
    "headers": _lines_with("include"),
}

_WRAPPED = {
    "headers": r"^[ \t]*#[ \t]*include[ \t]*[<\"](?P<at>{0})[>\"]",
    "symbols": r"(?<![\w:])(?P<at>{0})",
    "links": r"(?<![\w-])(?P<at>(?:-l|lib)?(?:{0}))(?![\w-])",
    "imports": r"^[ \t]*(?:from|import)[ \t]+(?:[\w., ]+,[ \t]*)?(?P<at>{0})(?=[\s.,;]|$)",
    "requirements": r"(?i)(?:^|[\s\"'=\[,-])(?P<at>{0})(?=$|[\s\"'=<>!~;,\[\]@])",
}


def _files(path: Path, root: Path, exclude: Sequence[str]) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        base = Path(folder)
        folders[:] = sorted(
            name
            for name in folders
            if name not in _SKIPPED_FOLDERS
            and not (base / name / "pyvenv.cfg").is_file()
            and not _excluded((base / name).relative_to(root).as_posix(), exclude)
        )
        for name in sorted(names):
            file = base / name
            if file.is_file() and not _excluded(file.relative_to(root).as_posix(), exclude):
                yield file


def _excluded(name: str, exclude: Sequence[str]) -> bool:
    return any(
        fnmatch.fnmatch(name, one.rstrip("/")) or fnmatch.fnmatch(name, f"{one.rstrip('/')}/*") for one in exclude
    )


def _read(file: Path) -> tuple[str | None, str]:
    try:
        if file.stat().st_size > MAX_BYTES:
            return None, f"larger than {MAX_BYTES} bytes"
        data = file.read_bytes()
    except OSError as error:
        return None, error.strerror or str(error)
    if b"\0" in data[:8192]:
        return None, "binary"
    return data.decode("utf-8", "replace").replace("\r\n", "\n"), ""
