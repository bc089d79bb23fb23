"""What was generated once: one small file per stock text, found by a hash over everything that the result depends on.

An entry that cannot be read, or does not lead to a file that obeys the laws, is generated anew and written over. A
folder that cannot be written only costs time.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rocm_overlay import __version__

from ..errors import EditConflict, InternalError
from ..shared import folders
from .edits import Edit, splice
from .engine import Result, assert_laws
from .header import GENERATOR
from .recipe import Decline, Outcome, RecipeSet, Status

FOLDER_VARIABLE = "AMD_OVERLAY_CACHE"
_OFF = ("", "0", "off")
# What an overlay is made by: everything that engine.py imports in this room, and this file, which reads it back.
MAKERS = (
    "cache",
    "chunks",
    "edits",
    "engine",
    "flow",
    "header",
    "layout",
    "modules",
    "pattern",
    "recipe",
    "source",
)


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where entries lie: $AMD_OVERLAY_CACHE (``off``: nowhere), else below the user's cache folder."""
    named = environment.get(FOLDER_VARIABLE)
    if named is not None:
        return None if named in _OFF else Path(named) / "gen"
    folder: Path | None = folders().user_folder("cache", environment)
    return folder / "gen" if folder else None


@cache
def tool_digest() -> str:
    """Hash over the program texts that make and compare overlays, and the versions of ours, of LibCST and of Python."""
    total = sha256(f"{__version__}\0{GENERATOR}\0{version('libcst')}\0{sys.version_info[:2]}\0".encode())
    room = Path(__file__).parent
    for file in (*(room / f"{name}.py" for name in MAKERS), *sorted((room / "drift").glob("*.py"))):
        total.update(f"{file.relative_to(room)}\0".encode() + sha256(file.read_bytes()).digest())
    return total.hexdigest()


class Store:
    """JSON by everything that it was made of: the program, the recipes and ``parts``. ``folder`` None keeps nothing."""

    def __init__(self, folder: Path | None, recipes: RecipeSet) -> None:
        self.folder = folder
        firing = ",".join(f"{one.name}:{one.must_fire}" for one in recipes.recipes)
        self._base = f"{tool_digest()}\0{recipes.digest}\0{firing}\0"

    def _file(self, parts: Sequence[str]) -> Path | None:
        if self.folder is None:
            return None
        key = sha256("\0".join([self._base, *parts]).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def read(self, *parts: str) -> Any:
        """Return what is kept, None where nothing is or it cannot be read."""
        file = self._file(parts)
        try:
            return None if file is None else json.loads(file.read_bytes())
        except (OSError, ValueError):
            return None

    def write(self, document: Any, *parts: str) -> bool:
        """Keep a document; False where the folder cannot be written."""
        file = self._file(parts)
        if file is None:
            return True
        text = json.dumps(document, separators=(",", ":")).encode("ascii")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=file.parent)
            with os.fdopen(handle, "wb") as stream:
                stream.write(text)
            os.replace(name, file)
        except OSError:
            return False
        return True


class Cache:
    """Results by content. ``folder`` None keeps nothing."""

    def __init__(self, folder: Path | None, recipes: RecipeSet) -> None:
        self.folder = folder
        self._store = Store(folder, recipes)

    def get(self, path: str, data: bytes) -> Result | None:
        """Return the result of a stock text, None where it is not known."""
        document = self._store.read(path, sha256(data).hexdigest())
        try:
            return None if document is None else _result(document, path, data)
        except (ValueError, KeyError, TypeError, AttributeError, EditConflict, InternalError):
            return None

    def put(self, result: Result) -> bool:
        """Keep a result; False where the folder cannot be written."""
        return self._store.write(_document(result), result.path, result.stock_sha256)


def _document(result: Result) -> dict[str, Any]:
    return {
        "overlay": sha256(result.overlay).hexdigest(),
        "edits": [
            [*edit.stock, result.overlay[slice(*edit.overlay)].decode("utf-8"), edit.recipe, edit.qualname]
            for edit in result.edits
        ],
        "outcomes": [
            [
                one.recipe,
                one.status.value,
                [[*site, parts] for site, parts in zip(one.sites, one.parts, strict=True)],
                [[no.qualname, no.line, no.reason] for no in one.declined],
                one.reason,
            ]
            for one in result.outcomes
        ],
    }


def _result(document: dict[str, Any], path: str, data: bytes) -> Result:
    edits = [Edit(start, end, text.encode("utf-8"), *names) for start, end, text, *names in document["edits"]]
    overlay, applied = splice(data, edits)
    if sha256(overlay).hexdigest() != document["overlay"]:
        raise ValueError("damaged")
    outcomes = tuple(
        Outcome(
            recipe,
            Status(status),
            tuple((name, line) for name, line, _ in sites),
            _declined(declined),
            reason,
            tuple(parts for _, _, parts in sites),
        )
        for recipe, status, sites, declined, reason in document["outcomes"]
    )
    result = Result(path, data, sha256(data).hexdigest(), overlay, applied, outcomes)
    assert_laws(result, parse=False)
    return result


def _declined(listed: list[list[Any]]) -> tuple[Decline, ...]:
    return tuple(Decline(*one) for one in listed)
