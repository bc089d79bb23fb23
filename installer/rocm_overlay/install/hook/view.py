"""Which files of an installed transformers the hook would serve, seen from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import TargetError, UsageError, nearest
from .. import catalog
from ..session import open_place, read_environment
from ..state import Environment
from ..target import Target
from ..transaction.receipt import BUNDLE, OWN
from ..transaction.states import FileState


@dataclass(frozen=True)
class ServedFile:
    """One file: ``served`` is True where its text has an overlay; ``why`` says why not."""

    path: str
    model: str
    found: str | None
    served: bool
    why: str | None = None
    state: FileState = FileState.STOCK


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
    environment = read_environment(open_place(target), target, bundle)
    files = (_look(environment, path) for path in environment.bundled())
    return tuple(
        file for file in files if file.state is not FileState.ABSENT and (models is None or file.model in models)
    )


def _look(environment: Environment, path: str) -> ServedFile:
    model = environment.model_of(path)
    try:
        facts = environment.facts(path)
    except TargetError as error:
        return ServedFile(path, model, None, False, f"cannot be read ({error.message})", FileState.FOREIGN)
    state = facts.state
    if state in (FileState.OVERLAY, FileState.OVERLAY_OTHER):
        origin = "" if facts.origin in (BUNDLE, None) else f" ({facts.origin})"
        why = f"the file itself is an overlay already{origin}"
        if facts.origin == OWN:
            why = "the file is your own replacement"
        return ServedFile(path, model, facts.digest, False, why, state)
    if any(entry.stock_sha256 == facts.digest for entry in facts.entries):  # what the hook itself looks at
        return ServedFile(path, model, facts.digest, True)
    return ServedFile(path, model, facts.digest, False, f"no overlay was made for this text: it is {facts.said}", state)
