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
    """Remove the compiled files of a module, also those below the target's PYTHONPYCACHEPREFIX, durably.

    Bytecode that Python never checks against its source must not come back with a power cut.
    """
    folder, name = split(place.target(path))
    place.tree.clean(f"{folder}/__pycache__", _pattern(name))
    if place.pycache_prefix is not None:
        place.pycache_prefix.clean(os.fspath(place.tree.root / folder).lstrip("/"), _pattern(name))
