"""Static checks of an overlay against the text that it was made from: imports, definitions, signatures, our names.

Nothing is imported. The generator has proved already that every byte outside its edits is the text's own and that the
overlay is Python; this looks at the result with other eyes, before it is put into an installed package.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ..errors import BundleError

_HEAD = re.compile(r"\s*(?:@|(?:async\s+)?def\s|class\s|import\s|from\s)")
_USED = re.compile(rb"\b_amd\.(on\.)?([a-z_]+)")
_OURS = re.compile(r"\b_amd")


def problems(stock: bytes, overlay: bytes) -> list[str]:
    """Return what an overlay lacks or has too much: an import, a decorator, a class, a signature, a name of ours."""
    before, after = Counter(_headers(stock)), Counter(_headers(overlay))
    found = [f"lacks {' '.join(one.split())[:80]}" for one in before - after]
    found += [f"adds {' '.join(one.split())[:80]}" for one in after - before]
    functions, switches = known_names()
    for switch, name in sorted(set(_USED.findall(overlay))):
        text = name.decode("ascii")
        if text not in (switches if switch else functions):
            found.append(f"uses amd_ops.{'on.' if switch else ''}{text}, which there is not")
    return found


def _headers(data: bytes) -> Iterator[str]:
    """Every import, decorator and header of a class or function with all its lines; those of ours are left out."""
    pending, depth = "", 0
    for line in data.decode("utf-8").splitlines():
        if not pending and not _HEAD.match(line):
            continue
        pending += f"{line}\n"
        depth += sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))
        if depth <= 0:
            if not _OURS.search(pending):
                yield pending
            pending, depth = "", 0
    if pending:
        yield pending


@cache
def known_names() -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that overlays may use of amd_ops, and its switches; read from its files, never imported.

    Raises:
        BundleError: amd_ops is not beside this program.
    """
    folder = Path(__file__).resolve().parents[2] / "amd_ops"
    folder = folder if folder.is_dir() else folder.parents[1] / "amd_ops"  # a checkout has it one folder higher
    try:
        functions = _imported(ast.parse((folder / "__init__.py").read_bytes()))
        switches = _switches(ast.parse((folder / "toggle_rules.py").read_bytes()))
    except OSError as error:
        raise BundleError(
            "no-amd-ops",
            f"{folder} cannot be read ({error.strerror}): overlays cannot be checked. Nothing was written.",
            remedy="reinstall transformers-rocm-overlay",
            paths=[folder],
        ) from error
    return frozenset(functions), frozenset(switches)


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def _switches(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id == "SWITCHES":
            yield from ast.literal_eval(node.value)
