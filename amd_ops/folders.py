"""Where this project keeps files of a user: one folder name below each XDG folder. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

NAME = "amd-overlay"
_KINDS = {
    "cache": ("XDG_CACHE_HOME", ".cache"),
    "config": ("XDG_CONFIG_HOME", ".config"),
    "data": ("XDG_DATA_HOME", ".local/share"),
}
# What earlier versions of this project named them. What a user keeps there is still read; caches are made anew.
_FORMER = {"config": "transformers-rocm-overlay", "data": "amd-ops"}


def user_folder(kind: str, environ: Mapping[str, str]) -> Path | None:
    """Return this project's folder for ``kind`` ("cache", "config" or "data"), or None for a user without a home.

    A relative XDG path is ignored, as the XDG base directory specification asks. Nothing is made.

    Examples:
        >>> user_folder("cache", {"HOME": "/home/ada"})
        PosixPath('/home/ada/.cache/amd-overlay')
    """
    root = _root(kind, environ)
    return root / NAME if root else None


def readable_folders(kind: str, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the folders where a user's files of ``kind`` may lie: today's, then that of earlier versions.

    Examples:
        >>> [path.name for path in readable_folders("data", {"HOME": "/home/ada"})]
        ['amd-overlay', 'amd-ops']
    """
    root = _root(kind, environ)
    names = (NAME, _FORMER[kind]) if kind in _FORMER else (NAME,)
    return tuple(root / name for name in names) if root else ()


def _root(kind: str, environ: Mapping[str, str]) -> Path | None:
    variable, default = _KINDS[kind]
    stated = environ.get(variable, "")
    if os.path.isabs(stated):
        return Path(stated)
    home = environ.get("HOME", "")
    return Path(home) / default if os.path.isabs(home) else None
