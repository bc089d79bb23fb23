"""Why an install or revert does nothing: one sentence, the files with what was found and expected, the next command."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ForeignError, UnsupportedError
from . import foreign
from .catalog import Manifest
from .spec import GENERATE
from .state import Environment, Facts
from .target import Target
from .transaction.receipt import ReceiptFile


def describe(facts: Facts) -> str:
    """Say what a file is that stands in the way, with the hash that was found and the one that was expected."""
    expected = f", expected {facts.recorded[:12]}" if facts.recorded else ""
    return f"is {facts.said} (sha256 {(facts.digest or '')[:12]}{expected})"


def edited(environment: Environment, found: Sequence[tuple[str, str]], *, adopt: bool) -> ForeignError:
    """Refuse to replace texts that somebody else wrote."""
    target = environment.target
    paths = [target.package / path for path, _ in found]
    without = "leave these models out with --models"
    reinstall = f"keep your edits elsewhere and reinstall transformers (`{_reinstall(target)}`)"
    remedy = (
        f"{without}, or {reinstall}"
        if adopt
        else f"pass --adopt, which makes overlays from your text (revert returns it), {without}, or {reinstall}"
    )
    return ForeignError(
        "edited-files",
        f"{len(found)} file(s) do not hold the stock text of transformers {target.version}: "
        + "; ".join(f"{target.package / path} {what}" for path, what in found)
        + "."
        + foreign.culprit(target, environment.record)
        + " Nothing was written.",
        remedy=remedy,
        paths=paths,
    )


def unseen(target: Target, found: Sequence[tuple[str, str]], manifest: Manifest) -> UnsupportedError:
    """Refuse stock texts that no overlay was made for."""
    nearest = manifest.releases[-1] if manifest.releases else "none"
    return UnsupportedError(
        "unseen-text",
        f"transformers {target.version} has stock texts that no overlay was made for: "
        + "; ".join(
            f"{target.package / path} (sha256 {digest[:12]}, expected {_wanted(manifest, path)})"
            for path, digest in found
        )
        + f"; the nearest known release is {nearest}. Nothing was written.",
        remedy=GENERATE,
        paths=[target.package / path for path, _ in found],
    )


def _wanted(manifest: Manifest, path: str) -> str:
    return " or ".join(one.stock_sha256[:12] for one in manifest.files if one.path == path) or "another text"


def absent(target: Target, paths: Sequence[str]) -> UnsupportedError:
    """Refuse models that this transformers does not have."""
    return UnsupportedError(
        "no-such-file",
        f"transformers {target.version} in {target.package} has no {', '.join(paths)}, and its RECORD lists none. "
        "Nothing was written.",
        remedy="leave these models out of --models",
        paths=[target.package / path for path in paths],
    )


def damaged(target: Target, paths: Sequence[str]) -> ForeignError:
    """Refuse a package that lacks files."""
    full = [target.package / path for path in paths]
    return ForeignError(
        "damaged-install",
        f"The installed transformers {target.version} is damaged: {len(paths)} of its files are missing: "
        f"{', '.join(map(str, full))}. Nothing was written.",
        remedy=f"reinstall transformers: `{_reinstall(target)}`",
        paths=full,
    )


def edited_since(target: Target, edited: Sequence[str]) -> ForeignError:
    """Refuse to replace texts that somebody changed after the install."""
    paths = [target.package / path for path in edited]
    return ForeignError(
        "edited-since",
        f"{len(edited)} overlaid file(s) were edited after the install: {', '.join(map(str, paths))}. "
        "Nothing was written.",
        remedy="run `overlay revert --force`: it copies your text to .amd-overlay/rescued/ and then restores stock",
        paths=paths,
    )


def not_ours(target: Target, strange: Sequence[str]) -> ForeignError:
    """Refuse where nothing tells which stock text a file shall get back."""
    paths = [target.package / path for path in strange]
    return ForeignError(
        "not-ours",
        f"There is no receipt, and {len(strange)} file(s) are neither the stock text of transformers {target.version} "
        f"nor ours: {', '.join(map(str, paths))}. Nothing was written.",
        remedy=f"keep your edits elsewhere and reinstall transformers: `{_reinstall(target)}`",
        paths=paths,
    )


def adopted_by_an_older_version(target: Target, file: ReceiptFile) -> ForeignError:
    """Refuse to go on with what an older version did: it put the overlay of stock in the place of an edited text."""
    path = target.package / file.path
    return ForeignError(
        "adopted-by-older-version",
        f"{path} was adopted by an older version of this program, which replaced your text "
        f"{file.stock.sha256[:12]} by the overlay of the stock text {(file.made_from or '')[:12]}: your edit is off. "
        "Nothing was written.",
        remedy="run `overlay install` again with --adopt, which makes an overlay from your text, or `overlay revert`, "
        "which returns it",
        paths=[path],
    )


def _reinstall(target: Target) -> str:
    return f"pip install --force-reinstall --no-deps transformers=={target.version}"
