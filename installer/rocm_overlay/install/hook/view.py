"""Which files of an installed transformers the hook would serve, seen from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import catalog
from ..nearest import nearest
from ..target import Target
from ..transaction.entry import sha256
from ..transaction.errors import UsageError
from .served import MARKER


@dataclass(frozen=True)
class ServedFile:
    """One file: ``served`` is True where its text has an overlay; ``why`` says why not."""

    path: str
    model: str
    found: str | None
    served: bool
    why: str | None = None


def known_models(models: Sequence[str] | None, bundle: Path) -> list[str] | None:
    """Check names against every line of the bundle; None means all. Raises UsageError."""
    if models is None:
        return None
    known = sorted({name for line in catalog.lines(bundle) for name in catalog.load(line, bundle).models()})
    unknown = [name for name in models if name not in known]
    if unknown or not models:
        hint = nearest(unknown[0], known) if unknown else None
        raise UsageError(
            "unknown-model" if unknown else "no-model",
            f"--models: {', '.join(unknown) or 'nothing'} is not among the models of this bundle: {', '.join(known)}"
            + (f"; did you mean {hint}?" if hint else ""),
            remedy=f"pass --models {hint or (known[0] if known else 'llama')}, or leave --models out for all of them",
        )
    return sorted(set(models))


def served_files(target: Target, bundle: Path, models: Sequence[str] | None) -> tuple[ServedFile, ...]:
    """Look at every file that the installed release has overlays for."""
    line = ".".join((target.version or "").split(".")[:2])
    if line not in catalog.lines(bundle):
        return ()
    files = []
    for path, entries in catalog.load(line, bundle).by_path().items():
        if models is not None and entries[0].model not in models:
            continue
        files.append(_look(target.package / path, path, entries))
    return tuple(files)


def _look(file: Path, path: str, entries: tuple[catalog.FileEntry, ...]) -> ServedFile:
    try:
        data = file.read_bytes()
    except OSError as error:
        return ServedFile(path, entries[0].model, None, False, f"cannot be read ({error.strerror})")
    digest = sha256(data)
    if data.startswith(MARKER):
        return ServedFile(path, entries[0].model, digest, False, "the file itself is an overlay already")
    if not any(entry.stock_sha256 == digest for entry in entries):
        return ServedFile(path, entries[0].model, digest, False, "no overlay was made for this text")
    return ServedFile(path, entries[0].model, digest, True)
