"""The mutating commands, without their command line: each takes options and returns an outcome, or raises."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ..console import short_steps
from ..errors import ForeignError, UnrecoveredError, UnsupportedError, UsageError, WriteError
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
    model_folders,
    open_place,
    read_environment,
)
from .state import Environment
from .target import HOOK, Target, resolve
from .transaction import blobs, journal, receipt, states
from .transaction.apply import STEPS_PER_FILE, Done, execute, preflight
from .transaction.decode import Reader
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
    transformers: str | None = None,
    models: Sequence[str] | None = None,
    *,
    generate: bool = False,
    generated: Path | None = None,
    replacements: Path | None = None,
    adopt: bool = False,
) -> Outcome:
    """Make the overlays of ``models`` (None: all) the full desired set of an environment.

    They come from the bundle, from a folder that `overlay gen` made, from a folder of the user's own files, or with
    ``generate`` from the installed files, here and now. ``transformers`` says which release is expected; None: the
    installed one. With ``adopt`` an overlay is made from every edited text, which is what revert then returns.
    """
    target = resolve(site_packages=options.site_packages, python=options.python)
    place = open_place(target)
    remarks: tuple[str, ...] = ()
    if generate:
        _refuse_other_sources(generated, replacements)
        spec.require(spec.parse(transformers, target, options.bundle), target, options.bundle)
    else:
        manifest = _choose(options, target, transformers, models, generated, replacements)
        planning.select_models(manifest.models(), manifest.line, models)
    _refuse_hook(place)
    recovered = heal(place, target, options)
    if generate:
        manifest, remarks = _generate(read_environment(place, target, options.bundle), models)

    def plan() -> Changes:
        return planning.plan_install(environment(), manifest, models, adopt=adopt)

    def environment() -> Environment:
        return read_environment(place, target, options.bundle)

    changes = _settled(place, plan)
    notes = (*target.notes, *remarks, *changes.notes)
    if options.dry_run:
        return Outcome("planned", target, changes, manifest, notes=notes)
    if changes.plan is None and not has_strays(place):
        return Outcome("nothing", target, changes, manifest, recovered=recovered, notes=notes)
    if changes.plan is not None:
        preflight(place, {place.folder(step.path) for step in changes.plan.steps})
    with exclusive(place, target, options):
        changes = plan()
        if changes.plan is None:
            return Outcome("nothing", target, changes, manifest, recovered=recovered, notes=notes)
        _keep_orphaned_receipt(place, target, changes)
        kept = _keep_texts(place, changes)
        done, after = _run(place, target, changes, options)
    if changes.adopted:
        after = [*after, f"adopted, so revert returns exactly what was found: {', '.join(changes.adopted)}"]
    return Outcome("installed", target, changes, manifest, done, recovered, (*notes, *kept, *after))


def _refuse_other_sources(generated: Path | None, replacements: Path | None) -> None:
    if generated is not None or replacements is not None:
        other = "--generated" if generated is not None else "--replacements"
        raise UsageError(
            "two-sources",
            f"--generate makes the overlays here, and {other} names a folder with others: expected one of them.",
            remedy=f"leave --generate or {other} out",
        )


def _generate(environment: Environment, models: Sequence[str] | None) -> tuple[catalog.Manifest, tuple[str, ...]]:
    from .generate import generate

    found = generate(environment, models, shown=True)
    return found.manifest, found.notes


def _choose(
    options: Options,
    target: Target,
    transformers: str | None,
    models: Sequence[str] | None,
    generated: Path | None,
    replacements: Path | None,
) -> catalog.Manifest:
    """Return the set to choose from. The user's own files stand beside the bundle's where models are named."""
    wanted = spec.parse(transformers, target, options.bundle)
    if generated is None and replacements is None:
        return spec.choose(wanted, target, options.bundle)
    from . import generated as folders
    from . import own

    spec.require(wanted, target, options.bundle)
    if replacements is None:
        assert generated is not None
        return folders.load(generated, target, models)
    if generated is not None:
        return own.together(folders.load(generated, target, None), own.load(replacements, target, None))
    files = own.load(replacements, target, None)
    bundled = manifests_of(target, options.bundle)
    return own.together(bundled[0], files) if bundled and models is not None else files


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
        swept = _sweep(place)
        return Outcome("nothing", target, changes, recovered=recovered, notes=(*target.notes, *notes, *swept))
    preflight(place, {place.folder(step.path) for step in changes.plan.steps})
    with exclusive(place, target, options):
        changes, notes = _plan_revert(place, target, options, force)
        if changes.plan is None:
            return Outcome("nothing", target, changes, recovered=recovered, notes=(*target.notes, *notes))
        kept = _keep_receipt(place, target, force)
        kept += _keep_texts(place, changes)
        done, remarks = _run(place, target, changes, options)
    return Outcome("reverted", target, changes, None, done, recovered, (*target.notes, *notes, *kept, *remarks))


def recover_only(options: Options) -> Outcome:
    """Finish an interrupted transaction, and remove temporary files that a stopped process left."""
    target = resolve(site_packages=options.site_packages, python=options.python, allow_missing=True)
    place = open_place(target)
    if not has_strays(place) and not journal.is_open(place):
        return Outcome("nothing", target, Changes(None), notes=target.notes)
    with locked(place, lock_seconds()):
        recovered = recover(place, target.version, catalog.source(options.bundle))
    return Outcome("recovered", target, Changes(None), recovered=recovered, notes=(*target.notes, *_sweep(place)))


def _sweep(place: Place) -> tuple[str, ...]:
    """Remove temporary files that a stopped process left anywhere, the probes of a preflight included."""
    if not has_strays(place):
        return ()
    with locked(place, lock_seconds()):
        removed = sum(place.tree.sweep(folder) for folder in sorted(model_folders(place) | place.state_folders()))
    return (f"removed {removed} temporary file(s)",) if removed else ()


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
    total = STEPS_PER_FILE * len(paths) + len(compiled)
    with short_steps(total) as step:
        with Signals() as signals:
            done = execute(place, changes.plan, signals, catalog.source(options.bundle), step)
        return done, [*done.notes, *recompile(place, target, compiled, step)]


def _had_pyc(on_disk: dict[str, object] | None, paths: set[str]) -> list[tuple[str, str]]:
    if on_disk is None or not paths:
        return []
    reader = receipt.Receipt.from_json(Reader(on_disk, "receipt.json"))
    return [(file.path, name) for file in reader.files if file.path in paths for name in file.had_pyc]


# -- planning a revert -------------------------------------------------------------------------------------------


def _plan_revert(place: Place, target: Target, options: Options, force: bool) -> tuple[Changes, list[str]]:
    try:
        found = read_environment(place, target, options.bundle, keep_orphan=True, without_bundle=True)
    except UnrecoveredError:
        if not force:
            raise
        known = tuple(manifests_of(target, options.bundle))
        found = Environment(place, target, record.load(target.dist_info), None, None, options.bundle, known)
        changes = planning.plan_revert_without_receipt(found, force=True)
        return (changes if changes.plan else planning.plan_forget(found)), ["the unreadable receipt was set aside"]
    current = found.receipt
    if current is None:
        if target.version is None:
            return Changes(None), []
        manifests_of(target, options.bundle)  # without a receipt all rests on the bundle: a damaged one is an error
        changes = planning.plan_revert_without_receipt(found, force=force)
        notes = ["no receipt: files were recognised by their hashes; their original times are unknown"]
        return changes, [*notes, *_of_the_left(changes)] if changes.plan else []
    if not states.is_orphaned(current, target.version, found.record):
        changes = planning.plan_revert(found, force=force)
        put_back = [file for file in current.files if file.path in changes.removed]
        edits = [file.path for file in put_back if file.belongs_to not in (None, file.stock.sha256)]
        notes = [f"your own text again, as it was found, not stock: {', '.join(edits)}"] if edits else []
        return changes, [*notes, *_of_the_left(changes)]
    _refuse_half_upgraded(found, current)
    release = f"transformers {target.version}" if target.version else "no transformers"
    return planning.plan_forget(found), [
        f"the receipt belongs to transformers {current.target.version}, found {release}: no file was touched, and "
        "the receipt was set aside"
    ]


def _of_the_left(changes: Changes) -> list[str]:
    return [f"neither stock nor ours, and left as they are: {', '.join(changes.left)}"] if changes.left else []


def _refuse_half_upgraded(environment: Environment, current: receipt.Receipt) -> None:
    """Another release, but our text is still there: nothing may be written, and the way back must stay."""
    left = []
    for file in current.files:
        if environment.facts(file.path).digest == file.overlay_sha256:
            left.append(environment.target.package / file.path)
    if left:
        raise ForeignError(
            "half-upgraded",
            f"The receipt belongs to transformers {current.target.version}, found {environment.target.version}, and "
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


def _keep_texts(place: Place, changes: Changes) -> list[str]:
    """Set aside adopted texts that are about to be forgotten without being put back: nobody else has them."""
    if changes.plan is None:
        return []
    kept = []
    for path, digest in planning.left_behind(place, changes.plan):
        data = blobs.get(place, digest)
        if data is not None:
            kept.append(f"the text that was adopted as {path} is kept as "
                        f"{set_aside(place, changes.plan.id, path, data)}")  # fmt: skip
    return kept
