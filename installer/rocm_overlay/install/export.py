"""`overlay export`: the overlays of one release as a patch for a source checkout; the installer never writes to one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import catalog, spec
from .nearest import nearest
from .patches import git
from .planning import select_models
from .session import Options
from .target import resolve
from .transaction.errors import UnsupportedError, UsageError

_ROOT = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")


@dataclass(frozen=True)
class Patch:
    """A patch: file by file (path in the checkout, model, text)."""

    release: str
    manifest: catalog.Manifest
    files: tuple[tuple[str, str, bytes], ...]


def git_patch(options: Options, release: str | None, models: Sequence[str] | None, *, root: str) -> Patch:
    """Return the patch from the stock texts of a release (None: the installed one) to their overlays."""
    if _ROOT.fullmatch(root) is None or ".." in root.split("/"):
        raise UsageError(
            "bad-root",
            f"--root {root!r} is not a folder below a checkout.",
            remedy="pass for example --root src/transformers",
        )
    if release is None:
        target = resolve(site_packages=options.site_packages, python=options.python, writes=False)
        release = target.version or ""
    manifest = _manifest(release, options)
    chosen = select_models(manifest, models)
    files = []
    for entry in sorted(manifest.files, key=lambda file: file.path):
        if release in entry.releases and entry.model in chosen:
            path = f"{root}/{entry.path}"
            files.append((path, entry.model, git(entry.stock_bytes(), entry.overlay_bytes(), path)))
    return Patch(release, manifest, tuple(files))


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
