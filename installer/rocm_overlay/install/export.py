"""`overlay export`: the overlays of one release as a patch for a source checkout; the installer never writes to one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UnsupportedError, UsageError, nearest
from . import catalog, spec
from .lookup import pair
from .patches import git
from .planning import select_models
from .session import Options, open_place, read_environment
from .target import resolve
from .transaction.states import FileState

_ROOT = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


@dataclass(frozen=True)
class Patch:
    """A patch: file by file (path in the checkout, model, text), and the version of the overlays in it."""

    release: str
    version: str
    files: tuple[tuple[str, str, bytes], ...]


def git_patch(options: Options, release: str | None, models: Sequence[str] | None, *, root: str) -> Patch:
    """Return the patch from the texts that overlays were made from to the overlays.

    For a release: the bundle's. For the installed one (None): those that are installed, of whatever origin, and the
    bundle's for files that are stock.
    """
    if _ROOT.fullmatch(root) is None or ".." in root.split("/"):
        raise UsageError(
            "bad-root",
            f"--root {root!r} is not a folder below a checkout.",
            remedy="pass for example --root src/transformers",
        )
    if release is None:
        return _of_the_installed(options, models, root)
    manifest = _manifest(release, options)
    chosen = select_models(manifest.models(), manifest.line, models)
    files = []
    for entry in sorted(manifest.files, key=lambda file: file.path):
        if release in entry.releases and entry.model in chosen:
            path = f"{root}/{entry.path}"
            files.append((path, entry.model, git(entry.stock_bytes(), entry.overlay_bytes(), path)))
    return Patch(release, manifest.version, tuple(files))


def _of_the_installed(options: Options, models: Sequence[str] | None, root: str) -> Patch:
    target = resolve(site_packages=options.site_packages, python=options.python, writes=False)
    environment = read_environment(open_place(target), target, options.bundle)
    release = target.version or ""
    paths = sorted({*environment.bundled(), *environment.paths()})
    if not paths:
        _manifest(release, options)  # says which releases there are
    known = sorted({environment.model_of(path) for path in paths})
    chosen = select_models(known, release, models)
    files = []
    for path in paths:
        if environment.model_of(path) not in chosen:
            continue
        if models is None and environment.facts(path).state not in (FileState.OVERLAY, FileState.STOCK):
            continue  # somebody's edit has no overlay; `--models` names the one that is missed
        found = pair(environment, path)
        if found is not None:
            name = f"{root}/{path}"
            files.append((name, found.model, git(found.base, found.overlay, name)))
    receipt = environment.receipt
    version = receipt.overlay_version if receipt is not None else environment.manifests[0].version
    return Patch(release, version, tuple(files))


def _manifest(release: str, options: Options) -> catalog.Manifest:
    known: list[str] = []
    for line in catalog.lines(options.bundle):
        manifest = catalog.load(line, options.bundle)
        if release in manifest.releases:
            return manifest
        known += manifest.releases
    hint = nearest(release, known)
    raise UnsupportedError(
        "unsupported-version",
        f"There are no overlays for transformers {release or '(no version)'}; this bundle has "
        f"{spec.supported(options.bundle)}" + (f"; did you mean {hint}?" if hint else "."),
        remedy=f"pass --transformers {hint or (known[-1] if known else '4.57.6')}, a full release number",
    )
