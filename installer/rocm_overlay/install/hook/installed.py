"""`overlay install --mode hook`: one `.pth` file beside transformers, which holds everything that there is to know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rocm_overlay

from ...errors import ForeignError, TargetError, UnsupportedError, UsageError
from .. import catalog, spec
from ..session import Options, heal, open_place, read_environment
from ..target import HOOK, Target, resolve
from ..transaction.decode import MalformedError, Reader, parse
from ..transaction.lock import cannot_write
from ..transaction.place import Place, new_id
from .served import SCHEMA
from .view import ServedFile, known_models, served_files

_START = Path(__file__).parent / "start.py"
_SERVED = Path(__file__).parent / "served.py"
_SITE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Installed:
    """What a hook file says: which bundle it serves, which models (None: all), and who wrote it for which release."""

    bundle: str
    models: tuple[str, ...] | None
    line: str
    version: str
    tool_version: str
    start: str


@dataclass(frozen=True)
class HookOutcome:
    """What `install --mode hook` did: action is installed, planned or nothing."""

    action: str
    target: Target
    path: str
    manifest: catalog.Manifest
    files: tuple[ServedFile, ...]
    notes: tuple[str, ...] = ()


def text(installed: Installed) -> bytes:
    """Return the hook file: a comment that programs read, and the one line that Python runs at its start."""
    models = None if installed.models is None else list(installed.models)
    facts = {**installed.__dict__, "models": models, "schema": SCHEMA}
    settings = {"bundle": installed.bundle, "models": models, "schema": SCHEMA}
    gone = "amd-overlay: {0} is gone, so stock models run; remove this hook with `overlay revert` or delete {1}\\n"
    call = "begin(" + ascii(settings) + ", " + ascii(str(_SERVED)) + ")"
    program = (
        f"p = {installed.start!a}; "
        "s = {'__name__': '_amd_overlay_start'}; "
        f"(exec(compile(open(p, 'rb').read(), p, 'exec'), s), exec({call!a}, s)) if os.path.isfile(p) else "
        f"sys.stderr and sys.stderr.write('{gone}'.format(p, {HOOK!a}))"
    )
    header = json.dumps(facts, ensure_ascii=True, sort_keys=True)
    return f"# amd-overlay {header}\nimport os, sys; exec({program!a})\n".encode("ascii")


def load(place: Place) -> Installed | None:
    """Return what the hook file of an environment says, None where there is none. Raises ForeignError when damaged."""
    data = place.tree.read(HOOK)
    if data is None:
        return None
    path = place.tree.root / HOOK
    try:
        first = data.split(b"\n", 1)[0]
        if not first.startswith(b"# amd-overlay "):
            raise MalformedError("the first line is not ours")
        reader = parse(first[len(b"# amd-overlay ") :], HOOK)
        found = _read(reader)
        if data != text(found):
            raise MalformedError("the program line is not what this version writes")
    except MalformedError as error:
        raise ForeignError(
            "hook-unreadable",
            f"{path} is not a hook file of this version: {error}.",
            remedy=f"run `overlay revert --force`, which removes it, or delete {path}",
            paths=[path],
        ) from error
    return found


def _read(reader: Reader) -> Installed:
    if reader.text("schema") != SCHEMA:
        raise MalformedError(f"schema: found {reader.text('schema')}, expected {SCHEMA}")
    models = None if reader.get("models") is None else reader.texts("models")
    names = ("line", "version", "tool_version", "start", "bundle")
    values = {name: reader.text(name) for name in names}
    return Installed(models=models, **values)


def install(
    options: Options,
    transformers: str | None,
    models: Sequence[str] | None,
    *,
    generate: bool = False,
    generated: Path | None = None,
    replacements: Path | None = None,
    adopt: bool = False,
) -> HookOutcome:
    """Write the hook file. Nothing below ``transformers/`` is touched. Raises OverlayError."""
    given = {
        "--generate": generate,
        "--generated": generated is not None,
        "--replacements": replacements is not None,
        "--adopt": adopt,
    }
    option = next((name for name, there in given.items() if there), None)
    if option is not None:
        raise UsageError(
            "hook-option",
            f"{option} goes with --mode files: the hook serves the bundle's overlays and replaces no file.",
            remedy=f"leave {option} or --mode hook out",
        )
    target = resolve(site_packages=options.site_packages, python=options.python, writes=False)
    manifest = spec.choose(spec.parse(transformers, target, options.bundle), target, options.bundle)
    place = open_place(target)
    heal(place, target, options)
    _refuse(place, target, options)
    chosen = known_models(models, options.bundle)
    files = served_files(target, options.bundle, chosen)
    if not any(file.served for file in files):
        raise UnsupportedError(
            "nothing-to-serve",
            f"None of {len(files)} file(s) of transformers {target.version} in {target.package} has a text that an "
            "overlay was made for. Nothing was written.",
            remedy="run `overlay status` to see which files differ from stock",
            paths=[target.package],
        )
    wanted = Installed(
        bundle=str(options.bundle.resolve()),
        models=None if chosen is None else tuple(chosen),
        line=manifest.line,
        version=target.version or "",
        tool_version=rocm_overlay.__version__,
        start=str(_START),
    )
    path = str(place.tree.root / HOOK)
    notes = tuple(target.notes) + tuple(f"{file.path} stays stock: {file.why}" for file in files if not file.served)
    if place.tree.read(HOOK) == text(wanted):
        return HookOutcome("nothing", target, path, manifest, files, notes)
    if options.dry_run:
        return HookOutcome("planned", target, path, manifest, files, notes)
    try:
        place.put_state(HOOK, text(wanted), new_id())
    except OSError as error:
        refusal = cannot_write(place, place.tree.root, error)
        refusal.remedy += ", or change nothing and use `overlay run -- CMD`"
        raise refusal from error
    return HookOutcome("installed", target, path, manifest, files, notes)


def remove(place: Place, *, dry_run: bool, force: bool) -> str | None:
    """Remove the hook file; return its path, or None where there is none. Raises WriteError."""
    path = place.tree.root / HOOK
    if HOOK not in place.tree.names("."):
        return None
    if not force:
        load(place)
    if not dry_run:
        try:
            place.tree.remove(HOOK)
            place.tree.sync(".")
        except OSError as error:
            raise cannot_write(place, place.tree.root, error) from error
    return str(path)


def _refuse(place: Place, target: Target, options: Options) -> None:
    if target.site.name not in _SITE_FOLDERS:
        raise TargetError(
            "no-site-folder",
            f"{target.site} is no folder in which Python reads .pth files (site-packages, dist-packages), so a hook "
            "there would do nothing.",
            remedy="use `overlay run -- CMD`, which needs no file at all",
            paths=[target.site],
        )
    if read_environment(place, target, options.bundle, keep_orphan=True).receipt is not None:
        raise UsageError(
            "files-installed",
            f"{target.package} has overlays in --mode files already, which the hook would serve a second time.",
            remedy="run `overlay revert` first",
        )
