"""`overlay install --generate`: overlays made here and now from the installed files, whatever their release is.

What is made is checked statically before anything is written, and what the nearest known release has and this one has
not is said. Results are kept by their text, so that an interrupted run goes on where it was. Needs libcst, like
``.made``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import BundleError, UnsupportedError, UsageError, nearest
from . import made, statics
from .catalog import Manifest
from .generated import PREFIX
from .state import EDITED, Environment
from .transaction.entry import sha256
from .transaction.receipt import GENERATED
from .transaction.states import FileState

OLDEST = "4.45"
# Causes of losses, and places of one, that the notes of an install have.
_CAUSES, _PLACES = 6, 3
_TEXTS = frozenset({FileState.STOCK, FileState.UNSEEN})


@dataclass(frozen=True)
class Generated:
    """What was made: the set to install from, and what the reader should know about it."""

    manifest: Manifest
    notes: tuple[str, ...]


def generate(environment: Environment, models: Sequence[str] | None, *, shown: bool = False) -> Generated:
    """Make overlays from the installed files of ``models`` (None: all), and check them.

    Edited files are left out: ``--adopt`` makes theirs. ``shown`` tells on stderr how far it is.

    Raises:
        UnsupportedError: the release is older than the recipes reach, or none of its files has a place for them.
        UsageError: libcst is missing, or a model is unknown.
        BundleError: an overlay did not pass the static checks.
    """
    _refuse_too_old(environment)
    made.need_libcst()
    texts, edited = _texts(environment, models)
    version = environment.target.version or ""
    result = made.make(texts, version=version, origin=GENERATED, sizes=_sizes(environment, texts), shown=shown)
    for entry in result.entries:
        wrong = statics.problems(entry.base, entry.text)
        if wrong:
            raise BundleError(
                "generated-damaged",
                f"The overlay of {entry.path} did not pass the static checks: {'; '.join(wrong[:4])}. "
                "Nothing was written.",
                remedy="leave this model out with --models, and report it",
                paths=[environment.target.package / entry.path],
            )
    if not result.entries:
        raise UnsupportedError(
            "nothing-generated",
            f"No recipe fits any of the {len(texts)} modeling files of transformers {version} in "
            f"{environment.target.package}. Nothing was written.",
            remedy="run `overlay gen --all --from-installed --dry-run -v`, which says why",
            paths=[environment.target.package],
        )
    listed = "".join(f"{one.path} {one.stock_sha256} {one.overlay_sha256}\n" for one in result.entries)
    manifest = Manifest(
        line=".".join(version.split(".")[:2]),
        generator=result.generator,
        recipes=result.recipes,
        releases=(version,),
        files=tuple(sorted(result.entries, key=lambda one: one.path)),
        sha256=sha256(listed.encode("ascii")),
        origin=PREFIX,
    )
    return Generated(manifest, (*_account(texts, result, edited), *_lost(version, result)))


def _refuse_too_old(environment: Environment) -> None:
    from packaging.version import InvalidVersion, Version

    version = environment.target.version or ""
    try:
        if Version(version) >= Version(OLDEST):
            return
    except InvalidVersion:
        return  # a version of somebody's own: what the texts are decides
    raise UnsupportedError(
        "too-old",
        f"transformers {version} in {environment.target.package} is older than {OLDEST}, the oldest release that "
        "overlays are generated for: before it, attention makes its own rotation tables instead of being given them, "
        "and nothing older was ever run with the recipes. Nothing was written.",
        remedy=f"use transformers {OLDEST} or newer",
        paths=[environment.target.package],
    )


def _texts(environment: Environment, models: Sequence[str] | None) -> tuple[dict[str, bytes], list[str]]:
    """The text to make each overlay from, by path, and the paths that somebody edited."""
    from ..patchgen.trees import open_tree

    # Without a RECORD nothing says what stock is: the text that is there is the base, and revert returns it.
    unlisted = None if environment.record.present else FileState.FOREIGN
    texts: dict[str, bytes] = {}
    edited: list[str] = []
    known: set[str] = set()
    for path in open_tree(environment.target.package).modeling_files:
        model = environment.model_of(path)
        known.add(model)
        if models is not None and model not in models:
            continue
        facts = environment.facts(path)
        if facts.state is FileState.OVERLAY and facts.receipt is not None:
            texts[path] = environment.base_text(path, facts.receipt.stock.sha256)
        elif facts.state is FileState.OVERLAY and facts.shipped is not None:
            texts[path] = facts.shipped.stock_bytes()
        elif facts.observed is not None and (facts.state in _TEXTS or facts.state is unlisted):
            texts[path] = facts.observed.data
        elif facts.state in EDITED:
            edited.append(path)
    for name in models or ():
        if name not in known:
            hint = nearest(name, known)
            raise UsageError(
                "unknown-model",
                f"--models: {name} is no model of transformers {environment.target.version} in "
                f"{environment.target.package}" + (f"; did you mean {hint}?" if hint else ""),
                remedy=f"pass --models {hint or 'NAME'}, or leave --models out for all of them",
            )
    return texts, edited


def _sizes(environment: Environment, texts: Mapping[str, bytes]) -> dict[str, set[int]]:
    return {path: {one.stock_size for one in environment.facts(path).entries} for path in texts}


def _account(texts: Mapping[str, bytes], result: made.Made, edited: Sequence[str]) -> list[str]:
    notes = [f"generated {len(result.entries)} overlays from {len(texts)} modeling files"]
    without = [path for path, why in result.refused.items() if why.startswith("no recipe fits")]
    if without:
        notes.append(f"{len(without)} files have no place for a recipe and stay stock")
    notes += [f"{path} stays stock: {why}" for path, why in result.refused.items() if path not in without]
    if edited:
        notes.append(f"edited, so left alone without --adopt: {', '.join(edited)}")
    return notes


def _lost(version: str, result: made.Made) -> list[str]:
    """What the nearest known release has and this one has not, by cause."""
    from ..patchgen.losses import find_losses, grouped, nearest_releases

    lost = find_losses(version, result.results)
    near = nearest_releases(version)
    if not lost:
        return [f"nothing is lost that transformers {near[0]} has"] if near else []
    notes = [f"{len(lost)} places are lost that the nearest known release has"]
    groups = grouped(lost)
    for cause, places in groups[:_CAUSES]:
        listed = ", ".join(f"{one.path}:{one.line or '?'}" for one in places[:_PLACES])
        more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
        notes.append(f"lost {len(places)} x {cause}: {listed}{more}")
    if len(groups) > _CAUSES:
        notes.append("the rest: `overlay gen --all --from-installed --dry-run`")
    return notes
