"""Which release the user asks for. packaging is imported here only, since it costs more than the rest together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from . import catalog
from .target import Target
from .transaction.errors import UnsupportedError, UsageError

_BARE = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class Wanted:
    """A version specifier as typed, and in its full form."""

    text: str
    specifier: str


def parse(text: str, bundle: Path) -> Wanted:
    """Read ``4.57`` (that line), ``4.57.3`` (that release) or a full specifier. Raises UsageError."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    stripped = text.strip()
    if _BARE.fullmatch(stripped):
        suffix = "" if stripped.count(".") >= 2 else ".*"
        return Wanted(text, f"=={stripped}{suffix}")
    try:
        specifier = SpecifierSet(stripped)
    except InvalidSpecifier:
        specifier = SpecifierSet()
    if not str(specifier):
        raise UsageError(
            "bad-version",
            f"--transformers {text!r} is not a version, expected for example 4.57, 4.57.3 or '>=4.57,<4.58'; "
            f"this bundle has {supported(bundle)}.",
            remedy=f"run `overlay install --transformers {_newest(bundle)}`",
        )
    return Wanted(text, str(specifier))


def choose(wanted: Wanted, target: Target, bundle: Path) -> catalog.Manifest:
    """Return the manifest for the installed release. Raises UnsupportedError naming found, supported and what to do."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    specifier = SpecifierSet(wanted.specifier)
    lines = catalog.lines(bundle)
    known = [release for line in lines for release in catalog.load(line, bundle).releases]
    if not any(specifier.contains(release, prereleases=False) for release in known):
        raise UnsupportedError(
            "no-such-line",
            f"--transformers {wanted.text}: no overlay for it; this bundle has {supported(bundle)}, "
            f"found transformers {target.version} in {target.package}.",
            remedy=_remedy(wanted, target, known),
            paths=[target.package],
        )
    try:
        version = Version(target.version or "")
    except InvalidVersion as error:
        raise _refused(wanted, target, bundle, known) from error
    line = f"{version.major}.{version.minor}"
    if line not in lines or not specifier.contains(version, prereleases=False):
        raise _refused(wanted, target, bundle, known)
    return catalog.load(line, bundle)


def require(wanted: Wanted, target: Target) -> None:
    """Check that the installed release is one that was asked for, whatever the bundle has. Raises UnsupportedError."""
    from packaging.specifiers import SpecifierSet

    if target.version is None or not SpecifierSet(wanted.specifier).contains(target.version, prereleases=False):
        raise UnsupportedError(
            "unsupported-version",
            f"--transformers {wanted.text} does not include transformers {target.version} in {target.package}.",
            remedy=f"generate overlays for the release that is installed and pass --transformers {target.version}",
            paths=[target.package],
        )


def supported(bundle: Path) -> str:
    """Say which releases the bundle knows."""
    parts = []
    for line in catalog.lines(bundle):
        releases = catalog.load(line, bundle).releases
        parts.append(f"{line} ({', '.join(releases)})")
    return "; ".join(parts) or "no overlays at all"


def _refused(wanted: Wanted, target: Target, bundle: Path, known: list[str]) -> UnsupportedError:
    return UnsupportedError(
        "unsupported-version",
        f"Found transformers {target.version} in {target.package}, expected {wanted.specifier.replace(',', ', ')}; "
        f"supported: {supported(bundle)}. Nothing was written.",
        remedy=_remedy(wanted, target, known),
        paths=[target.package],
    )


def _remedy(wanted: Wanted, target: Target, known: list[str]) -> str:
    """Say what to run: nothing has to be installed where the release that is there has overlays."""
    from packaging.specifiers import SpecifierSet

    if not known:
        return "reinstall transformers-rocm-overlay"
    if target.version in known:
        return f"run `overlay install --transformers {_line(target.version)}` for the release that is installed"
    specifier = SpecifierSet(wanted.specifier)
    newest = next((one for one in reversed(known) if specifier.contains(one, prereleases=False)), known[-1])
    if target.executable is None:
        command = f"python -m pip install --upgrade --target {target.site} transformers=={newest}"
    elif target.installer == "uv":
        command = f"uv pip install --python {target.executable} transformers=={newest}"
    else:
        command = f"{target.executable} -m pip install transformers=={newest}"
    return f"run `{command}`, then `overlay install --transformers {_line(newest)}`"


def _line(release: str) -> str:
    return ".".join(release.split(".")[:2])


def _newest(bundle: Path) -> str:
    found = catalog.lines(bundle)
    return found[-1] if found else "4.57"
