"""What a standalone file has beyond its patches: a header, markers above patched code, and absolute imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence

from ...errors import Place
from .apply import Change, Made
from .definition import DefinitionNode
from .patches import AddHelper, ConfigError, Exclude, External, ModifyInit, OverrideMethod, Patch, ReplaceClass
from .stock import Stock, StockModule

_RULE = "# " + "=" * 70
_WIDE = "# " + "=" * 78
_RELATIVE = re.compile(rb"from[ \t]*((?:\.[ \t]*)+)([\w.]*)")
Applied = Sequence[tuple[Patch, Made]]


def header(module: StockModule, sha256: str, description: str, applied: Applied) -> str:
    """The comment block at the top: source, release, and the patches that were really applied. No clock."""
    lines = [
        _WIDE,
        "#  AUTO-GENERATED FILE - DO NOT EDIT DIRECTLY",
        _WIDE,
        f"#  Source: {module.name}",
        f"#  Based on: {module.release} (sha256:{sha256})",
        "#  Modified by: transformers-rocm-overlay, `overlay gen`",
        *([f"#  Description: {_line(description)}"] if description else []),
        "#",
        "#  Patches applied:",
        *(f"#    - {patch.kind}: {patch.target}" for patch, _ in applied),
        _WIDE,
        "",
    ]
    return "\n".join(lines)


def marked(applied: Applied, stock: Stock) -> dict[int, tuple[Change, ...]]:
    """Changes by patch number, with a marker above each replaced definition."""
    found: dict[int, tuple[Change, ...]] = {}
    for number, (patch, made) in enumerate(applied):
        title = _title(patch, made)
        if title is None:
            continue
        first, *rest = made.changes
        indent = " " * made.node.col_offset if made.node and not isinstance(patch, AddHelper) else ""
        text = _banner(f"[{title}] {patch.target}", [patch], indent)
        body = first.text.lstrip("\n")
        blank = first.text[: len(first.text) - len(body)]
        found[number] = (Change(first.start, first.end, blank + text + body), *rest)
    return found


def _title(patch: Patch, made: Made) -> str | None:
    if isinstance(patch, AddHelper):
        return "ADDED"
    if isinstance(patch, (OverrideMethod, ModifyInit, Exclude)) or made.node is None:
        return None
    if isinstance(patch, External):
        return "PATCHED CLASS" if isinstance(made.node, ast.ClassDef) else "PATCHED FUNCTION"
    return "PATCHED CLASS" if isinstance(patch, ReplaceClass) else "PATCHED FUNCTION"


def class_markers(applied: Applied, stock: Stock) -> list[Change]:
    """One marker above each class of which methods were patched."""
    owners: dict[int, tuple[DefinitionNode, list[Patch]]] = {}
    for patch, made in applied:
        if isinstance(patch, (OverrideMethod, ModifyInit)) and made.node is not None:
            owners.setdefault(id(made.node), (made.node, []))[1].append(patch)
    changes = []
    for node, patches in owners.values():
        offset = stock.offset(stock.extent(node)[0])
        methods = ", ".join(sorted({patch.claims[0].partition(".")[2] for patch in patches}))
        title = f"[MODIFIED CLASS] {node.name}"
        text = _banner(title, patches, " " * node.col_offset, f"Methods patched: {methods}")
        changes.append(Change(offset, offset, text))
    return changes


def _banner(title: str, patches: Iterable[Patch], indent: str, *more: str) -> str:
    reasons = dict.fromkeys(_line(patch.description) for patch in patches if patch.description)
    lines = [_RULE, f"# {title}", *(f"# {line}" for line in more), *(f"# Reason: {one}" for one in reasons), _RULE]
    return "".join(f"{indent}{line}\n" for line in lines)


def _line(text: str) -> str:
    """A description as one line: it must not end the comment that it stands in."""
    return " ".join(text.split())


def absolute_imports(stock: Stock, package: str, place: Place) -> list[Change]:
    """Turn ``from ..x import y`` into ``from package.x import y`` where it stands, wherever that is."""
    changes = []
    for node in ast.walk(stock.tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = package.split(".")
        if node.level > len(parts):
            raise ConfigError(f"a relative import leaves the package {package}", place=place, found=stock.place(node))
        base = ".".join(parts[: len(parts) - node.level + 1])
        start = stock.offset(node.lineno, node.col_offset)
        found = _RELATIVE.match(stock.source.data, start)
        if found is None:
            raise ConfigError("cannot read this relative import", place=place, found=stock.place(node))
        name = f"{base}.{node.module}" if node.module else base
        changes.append(
            Change(found.start(1), found.end(2) if node.module else found.end(1), name + _space(found, node))
        )
    return changes


def _space(found: re.Match[bytes], node: ast.ImportFrom) -> str:
    """``from . import x``: the blank before ``import`` is part of what the dots' pattern took."""
    return "" if node.module or not found.group(1).endswith((b" ", b"\t")) else " "
