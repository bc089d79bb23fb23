"""What every command on an environment starts with: where it is, what is known about it, and no open transaction."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BundleError, UnrecoveredError, UsageError
from . import catalog, record
from .state import Environment
from .target import Target
from .transaction import journal, receipt, states
from .transaction.fs import TEMPORARY
from .transaction.place import JOURNAL, Place

if TYPE_CHECKING:
    from .transaction.recovery import Recovered

LOCK_VARIABLE = "AMD_OVERLAY_LOCK_SECONDS"
FORMER_LOCK_VARIABLE = "OVERLAY_LOCK_SECONDS"


@dataclass(frozen=True)
class Options:
    """Where to work. ``bundle`` is replaced in tests only."""

    python: str | None = None
    site_packages: Path | None = None
    dry_run: bool = False
    bundle: Path = catalog.BUNDLE


def lock_seconds() -> float:
    """Return how long to wait for another overlay command. Raises UsageError for a value that is not a number."""
    text = os.environ.get(LOCK_VARIABLE) or os.environ.get(FORMER_LOCK_VARIABLE) or "30"
    try:
        seconds = float(text)
    except ValueError as error:
        raise UsageError(
            "bad-lock-seconds",
            f"{LOCK_VARIABLE}={text!r} is not a number of seconds.",
            remedy=f"unset {LOCK_VARIABLE}, or set it to for example 30",
        ) from error
    return max(0.0, seconds)


def open_place(target: Target) -> Place:
    return Place.of(target.site, pycache_prefix=target.pycache_prefix)


def read_environment(
    place: Place, target: Target, bundle: Path, *, keep_orphan: bool = False, without_bundle: bool = False
) -> Environment:
    """Read receipt, RECORD and the bundle's manifest. A receipt of another release counts as none, unless
    ``keep_orphan``; a bundle that is damaged is an error, unless ``without_bundle``.
    """
    found = record.load(target.dist_info)
    current = receipt.load(place)
    on_disk = current.to_json() if current is not None else None
    if current is not None and not keep_orphan and states.is_orphaned(current, target.version, found):
        current = None
    try:
        manifests = manifests_of(target, bundle)
    except BundleError:
        if not without_bundle:
            raise
        manifests = []
    return Environment(place, target, found, current, on_disk, bundle, tuple(manifests))


def heal(place: Place, target: Target, options: Options, *, force: bool = False) -> Recovered | None:
    """Run recovery where a transaction was left open."""
    if not journal.is_open(place):
        return None
    if options.dry_run:
        raise UnrecoveredError(
            "interrupted",
            f"An interrupted transaction is open in {place.tree.root / JOURNAL}, and --dry-run writes nothing.",
            remedy="run `overlay recover`, then this command again",
            paths=[place.tree.root / JOURNAL],
        )
    from .transaction.lock import locked
    from .transaction.recovery import recover

    with locked(place, lock_seconds()):
        return recover(place, target.version, catalog.source(options.bundle), force=force)


@contextmanager
def exclusive(place: Place, target: Target, options: Options) -> Iterator[None]:
    """Hold the lock with nothing left over from others: recovered, and without stray temporary files."""
    from .transaction.lock import locked
    from .transaction.recovery import recover

    with locked(place, lock_seconds()):
        recover(place, target.version, catalog.source(options.bundle))
        for folder in sorted(model_folders(place) | place.state_folders()):
            place.tree.sweep(folder)
        yield


def has_strays(place: Place) -> bool:
    """Tell whether a stopped process left a temporary file in any folder where one may be."""
    looked_in = model_folders(place) | place.state_folders()
    return any(TEMPORARY.fullmatch(name) for folder in looked_in for name in place.tree.names(folder))


def model_folders(place: Place) -> set[str]:
    """Return the folders of all models: in each of them a stopped process may have left a temporary file."""
    top = f"{place.package}/models"
    folders = {f"{above}/{name}" for above in (top, f"{top}/deprecated") for name in place.tree.names(above)}
    return {folder for folder in folders if (place.tree.root / folder).is_dir()}


def manifests_of(target: Target, bundle: Path) -> list[catalog.Manifest]:
    """Return the manifest for the installed release, by its first two numbers."""
    line = ".".join((target.version or "").split(".")[:2])
    return [catalog.load(line, bundle)] if line in catalog.lines(bundle) else []
