"""Other people's overlays on the same transformers, recognised by what they leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .record import Record
from .target import Target

_OPENPI = "models/siglip/check.py"


def added_files(target: Target, record: Record) -> list[str]:
    """Return Python files below the package that its RECORD does not list; nothing where there is no RECORD."""
    if not record.present:
        return []
    found = []
    for folder, folders, names in os.walk(target.package):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        base = os.path.relpath(folder, target.package).replace(os.sep, "/")
        for name in sorted(names):
            path = name if base == "." else f"{base}/{name}"
            if name.endswith(".py") and not record.lists(path):
                found.append(path)
    return found


def others(target: Target, record: Record) -> Iterator[tuple[str, str]]:
    """Yield (name, evidence) for every other tool that changes transformers and can be recognised."""
    if (target.package / _OPENPI).is_file() and not record.lists(_OPENPI):
        yield (
            "openpi",
            f"{target.package / _OPENPI} is a file that openpi copies in; transformers has none of that name",
        )
    for name in ("unsloth", "unsloth_zoo"):
        if (target.site / name).is_dir():
            yield "unsloth", f"{target.site / name} replaces transformers' functions when it is imported"
            break


def culprit(target: Target, record: Record) -> str:
    """Return a sentence that names the likely author of foreign edits, or an empty text."""
    names = [f"{name} ({evidence})" for name, evidence in others(target, record)]
    return f" They look like the work of {'; '.join(names)}." if names else ""
