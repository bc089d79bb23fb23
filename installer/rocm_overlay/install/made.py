"""Overlays made now, by the recipes, from the texts that are there: `overlay install --adopt`.

A text is the base of an overlay, not a release: what somebody edited keeps the edit, and the recipes change what they
recognise around it. Needs libcst (extra ``gen``), which is imported when the first overlay is made.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..errors import OverlayError, UsageError
from .catalog import FileEntry
from .transaction.entry import sha256
from .transaction.receipt import ADOPTED

if TYPE_CHECKING:
    from ..patchgen.engine import Result


@dataclass(frozen=True)
class MadeEntry(FileEntry):
    """An overlay that was made a moment ago: both texts are in memory. ``account`` says what the recipes did."""

    text: bytes = field(repr=False)
    base: bytes = field(repr=False)
    source: str
    account: tuple[str, ...]

    @property
    def origin(self) -> str:
        """Where the overlay comes from."""
        return self.source

    def overlay_bytes(self) -> bytes:
        """Return the overlay text."""
        return self.text

    def stock_bytes(self) -> bytes:
        """Return the text that it was made from."""
        return self.base


@dataclass(frozen=True)
class Made:
    """What came of a set of texts: overlays, and the paths for which none could be made with the reason."""

    entries: tuple[MadeEntry, ...]
    refused: Mapping[str, str]
    generator: int
    recipes: str
    results: tuple[Result, ...] = ()
    """What the recipes did to each text, those without an overlay included."""


def need_libcst() -> None:
    """Raise UsageError where libcst, which makes overlays, is missing."""
    if find_spec("libcst") is None:
        raise UsageError(
            "needs-gen",
            f"Making overlays here needs libcst, which is not installed in {sys.prefix}. Nothing was written.",
            remedy="run `pip install libcst` there",
        )


def make(
    texts: Mapping[str, bytes],
    *,
    version: str,
    origin: str = ADOPTED,
    sizes: Mapping[str, Collection[int]] | None = None,
    jobs: int | None = None,
    shown: bool = False,
) -> Made:
    """Make an overlay from each text, by its path below the package (``models/llama/modeling_llama.py``).

    ``shown`` tells on stderr how far it is. ``sizes`` are lengths by path that an overlay must not have, so that stale
    bytecode of other stock texts can be told apart. Raises UsageError where libcst is missing.
    """
    need_libcst()
    from ..overlays.recipes import recipe_set
    from ..patchgen import batch, header
    from ..patchgen.engine import generate

    recipes = recipe_set()
    inputs = [batch.Input(path, path, lambda data=data: data) for path, data in texts.items()]  # type: ignore[misc]
    done = batch.run_batch(inputs, recipes, jobs=jobs, shown=shown)
    results = {result.path: result for result in done.results}
    failed = [path for path in texts if path not in results]
    refused = dict(zip(failed, map(_sentence, done.errors), strict=True))
    entries = []
    for path, result in results.items():
        taken = {len(result.stock), *(sizes or {}).get(path, ())}
        padding = 0
        try:
            result.require_clean()
            while result.changed and len(result.overlay) in taken:
                padding += 1
                result = generate(result.stock, path, recipes, padding=padding)
        except OverlayError as error:
            refused[path] = _sentence(error)
            continue
        if result.changed:
            entries.append(_entry(result, version, origin))
        else:
            refused[path] = _why_not(result)
    return Made(tuple(entries), refused, header.GENERATOR, recipes.digest, done.results)


def _entry(result: Result, version: str, origin: str) -> MadeEntry:
    from ..patchgen.report import declined_lines, file_line

    return MadeEntry(
        model=PurePosixPath(result.path).parent.name,
        path=result.path,
        stock_sha256=result.stock_sha256,
        stock_size=len(result.stock),
        overlay_sha256=sha256(result.overlay),
        overlay_size=len(result.overlay),
        payload=result.path,
        diff="",
        releases=(version,),
        edits=(),
        folder=Path(),
        text=result.overlay,
        base=result.stock,
        source=origin,
        account=(file_line(result), *declined_lines(result)),
    )


def _sentence(error: Exception) -> str:
    """An error of the generator, which has a line per fact, on one line."""
    return "; ".join(line.strip() for line in str(error).splitlines())


def _why_not(result: Result) -> str:
    """Say why the recipes changed nothing: what each of them said about a place that it looked at."""
    from ..patchgen.report import declined_lines

    if result.outcomes and result.outcomes[0].reason is not None:
        return f"it is an overlay already ({result.outcomes[0].reason})"
    said = declined_lines(result)
    return "no recipe fits it" + (f" ({'; '.join(said[:3])})" if said else "")
