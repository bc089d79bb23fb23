"""Which release the user asks for. packaging is imported here only, since it costs more than the rest together."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UnsupportedError, UsageError
from . import catalog
from .target import Target

_BARE = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class Wanted:
    """A version specifier as typed, and in its full form."""

    text: str
    specifier: str


def parse(text: str | None, target: Target, bundle: Path) -> Wanted:
    """Read ``4.57`` (that line), ``4.57.3`` or ``5.25.0.dev0`` (that release), a full specifier, or None: the installed
    release. Raises UsageError.
    """
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    if text is None:
        return Wanted(target.version or "unknown", "")
    stripped = text.strip()
    if _BARE.fullmatch(stripped):
        suffix = "" if stripped.count(".") >= 2 else ".*"
        return Wanted(text, f"=={stripped}{suffix}")
    with contextlib.suppress(InvalidVersion):
        return Wanted(text, f"=={Version(stripped)}")
    try:
        specifier = SpecifierSet(stripped)
    except InvalidSpecifier:
        specifier = SpecifierSet()
    if not str(specifier):
        raise UsageError(
            "bad-version",
            f"--transformers {text!r} is not a version, expected for example 4.57, 4.57.3, "
            f"5.25.0.dev0 or '>=4.57,<4.58'; this bundle has {supported(bundle)}.",
            remedy="run `overlay install` without --transformers, which takes the installed release",
        )
    return Wanted(text, str(specifier))


def choose(wanted: Wanted, target: Target, bundle: Path) -> catalog.Manifest:
    """Return the manifest for the installed release. Raises UnsupportedError naming found, supported and what to do."""
    from packaging.version import InvalidVersion, Version

    require(wanted, target, bundle)
    try:
        version = Version(target.version or "")
    except InvalidVersion as error:
        raise _uncommitted(target, bundle) from error
    line = f"{version.major}.{version.minor}"
    if line not in catalog.lines(bundle):
        raise _uncommitted(target, bundle)
    return catalog.load(line, bundle)


def require(wanted: Wanted, target: Target, bundle: Path) -> None:
    """Check that the installed release is one that was asked for, whatever the bundle has. Raises UnsupportedError."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion

    try:
        asked = not wanted.specifier or SpecifierSet(wanted.specifier).contains(target.version or "", prereleases=True)
    except InvalidVersion:
        asked = False
    if not asked:
        raise UnsupportedError(
            "unsupported-version",
            f"Found transformers {target.version} in {target.package}, expected "
            f"{wanted.specifier.replace(',', ', ')}; supported: {supported(bundle)}. Nothing was written.",
            remedy=_remedy(target, bundle),
            paths=[target.package],
        )


def _uncommitted(target: Target, bundle: Path) -> UnsupportedError:
    return UnsupportedError(
        "unsupported-version",
        f"Found transformers {target.version} in {target.package}, for which no overlays are committed; committed: "
        f"{supported(bundle)}. Nothing was written.",
        remedy=_remedy(target, bundle),
        paths=[target.package],
    )


def supported(bundle: Path) -> str:
    """Say which releases the bundle knows."""
    parts = []
    for line in catalog.lines(bundle):
        releases = catalog.load(line, bundle).releases
        parts.append(f"{line} ({', '.join(releases)})")
    return "; ".join(parts) or "no overlays at all"


def _remedy(target: Target, bundle: Path) -> str:
    """Say what to run: no other release has to be installed."""
    lines = catalog.lines(bundle)
    if not lines:
        return "reinstall transformers-rocm-overlay"
    if ".".join((target.version or "").split(".")[:2]) in lines:
        return "run `overlay install`, which takes the installed release"
    return GENERATE


GENERATE = "run `overlay install --generate`, which makes the overlays here from the installed files"
"""What to do where the release that is installed has no committed overlays."""
