"""The mutating commands, without their command line: each takes options and returns an outcome, or raises."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from . import catalog, planning, record, spec
from .planning import Changes
from .recompile import recompile, survey
from .session import (
    Options,
    exclusive,
    has_strays,
    heal,
    lock_seconds,
    manifests_of,
    open_place,
    read_situation,
)
from .situation import Situation
from .target import HOOK, Target, resolve
from .transaction import journal, receipt, states
from .transaction.apply import Done, execute, preflight
from .transaction.decode import Reader
from .transaction.errors import BundleError, ForeignError, UnrecoveredError, UnsupportedError, UsageError, WriteError
from .transaction.lock import locked
from .transaction.place import LOCK, RECEIPT, STATE, Place, new_id
from .transaction.recovery import Recovered, recover, set_aside
from .transaction.signals import Signals

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What a mutating command did: action is installed, reverted, recovered, planned or nothing."""

    action: str
    target: Target
    changes: Changes
    manifest: catalog.Manifest | None = None
    done: Done | None = None
    recovered: Recovered | None = None
    notes: tuple[str, ...] = ()
    hook: str | None = None
    """The hook file that was removed."""


def install(
    options: Options,
    transformers: str,
    models: Sequence[str] | None = None,
    *,
    generated: Path | None = None,
    adopt: bool = False,
) -> Outcome:
    """Make the overlays of ``models`` (None: all) the full desired set of an environment.

    They come from the bundle, or from a folder that `overlay gen` made. ``adopt`` overlays edited files, too.
    """
    target = resolve(site_packages=options.site_packages, python=options.python)
    manifest = _choose(options, target, transformers, models, generated)
    chosen = planning.select_models(manifest, models)
    place = open_place(target)
    _refuse_hook(place)
    recovered = heal(place, target, options)

    def plan() -> Changes:
        return planning.plan_install(read_situation(place, target, options.bundle), manifest, chosen, adopt=adopt)

    changes = _settled(place, plan)
    if options.dry_run:
        return Outcome("planned", target, changes, manifest, notes=target.notes)
    folders = {place.folder(path) for path in manifest.by_path()}
    if changes.plan is None and not has_strays(place, folders):
        return Outcome("nothing", target, changes, manifest, recovered=recovered, notes=target.notes)
    if changes.plan is not None:
        preflight(place, {place.folder(step.path) for step in changes.plan.steps})
    with exclusive(place, target, options, folders):
        changes = plan()
        if changes.plan is None:
            return Outcome("nothing", target, changes, manifest, recovered=recovered, notes=target.notes)
        _keep_orphaned_receipt(place, target, changes)
        done, notes = _run(place, target, changes, options)
    if changes.adopted:
        notes = [*notes, f"adopted, so revert returns exactly what was found: {', '.join(changes.adopted)}"]
    return Outcome("installed", target, changes, manifest, done, recovered, (*target.notes, *notes))


def _choose(
    options: Options, target: Target, transformers: str, models: Sequence[str] | None, folder: Path | None
) -> catalog.Manifest:
    wanted = spec.parse(transformers, options.bundle)
    if folder is None:
        return spec.choose(wanted, target, options.bundle)
    from . import generated

    spec.require(wanted, target)
    return generated.load(folder, target, models)


def _refuse_hook(place: Place) -> None:
    if HOOK in place.tree.names("."):
        raise UsageError(
            "hook-installed",
            f"{place.tree.root / HOOK} serves overlays at import already (--mode hook).",
            remedy="run `overlay revert` first, or keep the hook",
            paths=[place.tree.root / HOOK],
        )


def revert(options: Options, *, force: bool = False) -> Outcome:
    """Put every stock file back, and remove the hook. Works without the bundle as long as our state folder is there."""
    from .hook import installed

    target = resolve(site_packages=options.site_packages, python=options.python, allow_missing=True, writes=False)
    hook = installed.remove(open_place(target), dry_run=options.dry_run, force=force)
    if hook is not None and STATE not in open_place(target).tree.names("."):
        action = "planned" if options.dry_run else "reverted"
        return Outcome(action, target, Changes(None), notes=target.notes, hook=hook)
    return replace(_revert_files(options, force=force), hook=hook)


def _revert_files(options: Options, *, force: bool) -> Outcome:
    target = resolve(site_packages=options.site_packages, python=options.python, allow_missing=True)
    place = open_place(target)
    recovered = heal(place, target, options, force=force)
    changes, notes = _settled(place, lambda: _plan_revert(place, target, options, force))
    if options.dry_run:
        return Outcome("planned", target, changes, notes=(*target.notes, *notes))
    if changes.plan is None:
        return Outcome("nothing", target, changes, recovered=recovered, notes=(*target.notes, *notes))
    folders = {place.folder(step.path) for step in changes.plan.steps}
    preflight(place, folders)
    with exclusive(place, target, options, folders):
        changes, notes = _plan_revert(place, target, options, force)
        if changes.plan is None:
            return Outcome("nothing", target, changes, recovered=recovered, notes=(*target.notes, *notes))
        kept = _keep_receipt(place, target, force)
        done, remarks = _run(place, target, changes, options)
    return Outcome("reverted", target, changes, None, done, recovered, (*target.notes, *notes, *kept, *remarks))


def recover_only(options: Options) -> Outcome:
    """Finish an interrupted transaction, and remove temporary files that a stopped process left."""
    target = resolve(site_packages=options.site_packages, python=options.python, allow_missing=True)
    place = open_place(target)
    folders = {f"{place.package}/models/{name}" for name in place.tree.names(f"{place.package}/models")}
    folders = {folder for folder in folders if (place.tree.root / folder).is_dir()}
    strays = has_strays(place, folders)
    if not strays and not journal.is_open(place):
        return Outcome("nothing", target, Changes(None), notes=target.notes)
    with locked(place, lock_seconds()):
        recovered = recover(place, target.version, catalog.source(options.bundle))
        removed = sum(place.tree.sweep(folder) for folder in sorted(folders | place.state_folders()))
    notes = (f"removed {removed} temporary file(s)",) if removed else ()
    return Outcome("recovered", target, Changes(None), recovered=recovered, notes=(*target.notes, *notes))


def _settled(place: Place, plan: Callable[[], T]) -> T:
    """Plan without the lock. What makes that refuse may be another command half way: then look again under the lock."""
    try:
        return plan()
    except (ForeignError, UnsupportedError, UnrecoveredError):
        if LOCK.rpartition("/")[2] not in place.tree.names(STATE):
            raise
        with contextlib.suppress(WriteError), locked(place, lock_seconds()):
            return plan()
        raise


def _run(place: Place, target: Target, changes: Changes, options: Options) -> tuple[Done, list[str]]:
    """Execute a plan, then compile again what was compiled before."""
    assert changes.plan is not None
    paths = [step.path for step in changes.plan.steps]
    removed = set(changes.removed)
    earlier = _had_pyc(changes.plan.receipt_before, removed)
    compiled = survey(place, paths, earlier)
    with Signals() as signals:
        done = execute(place, changes.plan, signals, catalog.source(options.bundle))
    return done, [*done.notes, *recompile(place, target, compiled)]


def _had_pyc(on_disk: dict[str, object] | None, paths: set[str]) -> list[tuple[str, str]]:
    if on_disk is None or not paths:
        return []
    reader = receipt.Receipt.from_json(Reader(on_disk, "receipt.json"))
    return [(file.path, name) for file in reader.files if file.path in paths for name in file.had_pyc]


# -- planning a revert -------------------------------------------------------------------------------------------


def _plan_revert(place: Place, target: Target, options: Options, force: bool) -> tuple[Changes, list[str]]:
    try:
        situation = read_situation(place, target, options.bundle, keep_orphan=True)
    except UnrecoveredError:
        if not force:
            raise
        source = catalog.source(options.bundle)
        situation = Situation(place, target, record.load(target.dist_info), None, None, source)
        changes = planning.plan_revert_without_receipt(situation, manifests_of(target, options.bundle), force=True)
        return (changes if changes.plan else planning.plan_forget(situation)), ["the unreadable receipt was set aside"]
    current = situation.receipt
    if current is None:
        if target.version is None:
            return Changes(None), []
        changes = planning.plan_revert_without_receipt(situation, manifests_of(target, options.bundle), force=force)
        notes = ["no receipt: files were recognised by their hashes; their original times are unknown"]
        return changes, [*notes, *_of_the_left(changes)] if changes.plan else []
    if not states.is_orphaned(current, target.version, situation.record):
        changes = planning.plan_revert(situation, _manifests_at_hand(target, options.bundle), force=force)
        return changes, _of_the_left(changes)
    _refuse_half_upgraded(situation, current)
    found = f"transformers {target.version}" if target.version else "no transformers"
    return planning.plan_forget(situation), [
        f"the receipt belongs to transformers {current.target.version}, found {found}: no file was touched, and "
        "the receipt was set aside"
    ]


def _manifests_at_hand(target: Target, bundle: Path) -> list[catalog.Manifest]:
    """Where there is a receipt, it is enough for what it lists: a bundle that is gone or damaged must not stand in the
    way.
    """
    try:
        return manifests_of(target, bundle)
    except BundleError:
        return []


def _of_the_left(changes: Changes) -> list[str]:
    return [f"neither stock nor ours, and left as they are: {', '.join(changes.left)}"] if changes.left else []


def _refuse_half_upgraded(situation: Situation, current: receipt.Receipt) -> None:
    """Another release, but our text is still there: nothing may be written, and the way back must stay."""
    left = []
    for file in current.files:
        found = situation.observe(file.path)
        if found is not None and found.entry.sha256 == file.overlay_sha256:
            left.append(situation.target.package / file.path)
    if left:
        raise ForeignError(
            "half-upgraded",
            f"The receipt belongs to transformers {current.target.version}, found {situation.target.version}, and "
            f"these files still hold overlay text: {', '.join(map(str, left))}. Nothing was written.",
            remedy="reinstall transformers with your package manager (with its force-reinstall option), then run "
            "`overlay revert` again",
            paths=left,
        )


def _keep_receipt(place: Place, target: Target, force: bool) -> list[str]:
    """Set aside a receipt that is about to go without having been used: of another release, or unreadable."""
    data = place.tree.read(RECEIPT)
    if data is None:
        return []
    try:
        current = receipt.load(place)
    except UnrecoveredError:
        return [f"kept as {set_aside(place, new_id(), 'receipt.json', data)}"] if force else []
    found = record.load(target.dist_info)
    if current is not None and states.is_orphaned(current, target.version, found):
        return [f"kept as {set_aside(place, new_id(), 'receipt.json', data)}"]
    return []


def _keep_orphaned_receipt(place: Place, target: Target, changes: Changes) -> None:
    if changes.plan is not None and changes.plan.receipt_before is not None:
        _keep_receipt(place, target, force=False)
