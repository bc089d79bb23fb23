"""The two edits that every overlay has: the marker on line 1 and the import block."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from ..errors import Place, SourceError
from ..install.transaction.states import MARKER, MARKER_LINE
from .edits import Edit
from .source import Source

# Raised by hand whenever the same stock text and recipes would give other bytes.
GENERATOR = 3

_OURS = re.compile(rb"\b(?:_amd|_amd_[a-z]+|__amd_overlay__)\b")
_MODULE = "<module>"
_IMPORT = r"""from importlib.util import find_spec as _amd_spec
if getattr(_amd_spec("amd_ops"), "origin", None):
    import amd_ops as _amd
else:  # not installed, or only a folder that an uninstall left behind
    import os as _amd_os, re as _amd_re, warnings as _amd_warnings
    _amd, _amd_asks = None, _amd_re.compile(r"(AMD_OPS|FORCE_E\w+|USE_(AITER|FUSED|OPTI|PRESH)\w+)=(?!0$|off$|$)").match
    if _amd_set := ", ".join(filter(_amd_asks, map("=".join, sorted(_amd_os.environ.items())))):
        if _amd_os.environ.get("AMD_OPS_STRICT") == "1": raise ImportError(f"{__name__}: no amd_ops for {_amd_set}")
        _amd_warnings.warn(f"amd_ops cannot be imported: stock code runs in spite of {_amd_set}", RuntimeWarning)
__amd_overlay__ = "sha256:BASE"
"""


@dataclass(frozen=True)
class Marker:
    """What the first line of an overlay file says about it."""

    base: str
    generator: int
    recipes: str


def read_marker(source: Source) -> Marker | None:
    """Return the marker of a file that is an overlay, None for a file without one.

    Raises:
        SourceError: a first line that begins like a marker but is none that this generator knows, or a file without a
            marker that already uses one of our names.
    """
    first = source.data.split(b"\n", 1)[0]
    if MARKER not in first[:32]:
        _refuse_our_names(source)
        return None
    found = MARKER_LINE.search(first)
    if not found:
        raise SourceError(
            "the first line is an overlay marker that this version cannot read",
            place=Place(source.path, 1),
            expected="# amd-overlay/1 base=sha256:<64 hex> generator=<int> recipes=<12 hex>",
            found=first[:100].decode("utf-8", "replace"),
            remedy="take the stock file: `overlay revert` in that environment, or the wheel",
        )
    return Marker(found["base"].decode(), int(found["generator"]), found["recipes"].decode())


def _refuse_our_names(source: Source) -> None:
    found = _OURS.search(source.data)
    if found:
        raise SourceError(
            "the file has no overlay marker but already uses a name of ours: somebody edited it",
            place=Place(source.path, source.line_at(found.start())),
            expected="stock transformers source",
            found=found.group().decode(),
            remedy="take the stock file: reinstall transformers, or read it from the wheel",
        )


def marker_edit(source: Source, recipes: str, padding: int = 0) -> Edit:
    """The first line. ``padding`` lengthens it where the overlay would be as long as some stock text of its path."""
    offset = source.line_start(0)
    line = (
        f"# amd-overlay/1 base=sha256:{source.sha256} generator={GENERATOR} recipes={recipes} "
        f"(transformers source modified by transformers-rocm-overlay){'.' * padding}{source.newline_after(offset)}"
    )
    return Edit(offset, offset, line.encode("ascii"), "marker", _MODULE)


def import_edit(source: Source) -> Edit:
    """The soft import of ``amd_ops``, after the leading import section of the module.

    Without ``amd_ops`` a file runs its stock expressions; where a toggle asks for more it says so, or in strict mode
    refuses to be imported.
    """
    offset = _after_imports(source)
    newline = source.newline_after(max(0, offset - 2))
    text = _IMPORT.replace("BASE", source.sha256).replace("\n", newline)
    ended = source.data[offset - 1 : offset] in (b"\n", b"\r")
    return Edit(offset, offset, (text if ended else newline + text).encode("ascii"), "import", _MODULE)


def _after_imports(source: Source) -> int:
    """Offset of the line after the last statement of the leading docstring and imports."""
    last = previous = 0
    for index, statement in enumerate(source.tree.body):
        if not (isinstance(statement, (ast.Import, ast.ImportFrom)) or (index == 0 and _is_string(statement))):
            if statement.lineno <= last:  # it shares the line of the last import, which then is no line of imports
                last = previous
            break
        if statement.lineno > last:
            previous = last
        last = statement.end_lineno or statement.lineno
    if last == 0:
        raise SourceError(
            "the module does not begin with imports", place=Place(source.path), expected="import statements"
        )
    return source.lines.start(last + 1)


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
