"""Compiled files of a module: Python must never run the bytecode of a text that is no longer there."""

from __future__ import annotations

import os
import re

from .fs import split
from .place import Place


def _pattern(name: str) -> re.Pattern[str]:
    stem = re.escape(name.removesuffix(".py"))
    return re.compile(rf"{stem}\.[A-Za-z0-9_\-]+(\.opt-[A-Za-z0-9]+)?\.pyc")


def compiled(place: Place, path: str) -> tuple[str, ...]:
    """Return the names of the compiled files beside a module, of every interpreter tag and optimisation level."""
    folder, name = split(place.target(path))
    pattern = _pattern(name)
    return tuple(found for found in place.tree.names(f"{folder}/__pycache__") if pattern.fullmatch(found))


def purge(place: Place, path: str) -> None:
    """Remove the compiled files of a module, also those below the target's PYTHONPYCACHEPREFIX."""
    folder, name = split(place.target(path))
    for found in compiled(place, path):
        place.tree.remove(f"{folder}/__pycache__/{found}")
    if place.pycache_prefix is not None:
        mirrored = os.fspath(place.tree.root / folder).lstrip("/")
        for found in place.pycache_prefix.names(mirrored):
            if _pattern(name).fullmatch(found):
                place.pycache_prefix.remove(f"{mirrored}/{found}")
