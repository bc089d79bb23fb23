"""`overlay install --generated DIR`: overlays that the user made with `overlay gen --all -o DIR`, under the same rules.

Such a folder has no manifest. What it says is checked against the installed files instead: the marker on line 1 names
the text that an overlay was made from, and only that exact text is replaced by it.
"""

from __future__ import annotations

import ast
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError, UsageError, nearest
from .catalog import MAX_BYTES, FileEntry, Manifest
from .target import Target
from .transaction.entry import sha256
from .transaction.receipt import GENERATED
from .transaction.states import MARKER_LINE

PREFIX = "generated-"
_NAME = re.compile(r"modeling_[a-z0-9_]+\.py")
_FOLDER = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class GeneratedEntry(FileEntry):
    """An overlay from a folder of the user. The stock text cannot be derived from it: only the blobs have it."""

    @property
    def origin(self) -> str:
        """Where the overlay comes from."""
        return GENERATED

    def overlay_bytes(self) -> bytes:
        """Return the overlay text as it was read when the folder was examined. Raises BundleError if it changed."""
        data = read(self.folder / self.payload)
        if sha256(data) != self.overlay_sha256:
            raise _wrong(self.folder / self.payload, "changed while it was being installed")
        return data

    def stock_bytes(self) -> bytes:
        """Refuse: a generated overlay carries no edit list."""
        raise _wrong(self.folder / self.payload, "does not carry the stock text, and no receipt says what it was")


def load(folder: Path, target: Target, models: Sequence[str] | None) -> Manifest:
    """Read and check a folder of generated overlays. Raises UsageError and BundleError."""
    root = folder / "models"
    if not root.is_dir():
        raise UsageError(
            "no-overlays",
            f"--generated {folder}: there is no folder {root}.",
            remedy=f"run `overlay gen --all --from-installed -o {folder}`, which writes models/<x>/modeling_<x>.py",
            paths=[folder],
        )
    entries, recipes, generators = [], set(), set()
    for path in sorted((*root.glob("*/*.py"), *root.glob("deprecated/*/*.py"))):
        entry, generator, made_by = _entry(path, folder, target)
        entries.append(entry)
        generators.add(generator)
        recipes.add(made_by)
    if not entries:
        raise UsageError(
            "no-overlays",
            f"--generated {folder} has no modeling files below {root}.",
            remedy=f"run `overlay gen --all --from-installed -o {folder}`",
            paths=[root],
        )
    if len(recipes) > 1 or len(generators) > 1:
        raise _wrong(root, f"mixes overlays of several generators ({', '.join(sorted(recipes))})")
    check_names(models, entries)
    digest = sha256("".join(f"{one.path} {one.stock_sha256} {one.overlay_sha256}\n" for one in entries).encode("ascii"))
    return Manifest(
        line=".".join((target.version or "0.0").split(".")[:2]),
        generator=generators.pop(),
        recipes=recipes.pop(),
        releases=(target.version or "",),
        files=tuple(entries),
        sha256=digest,
        origin=PREFIX,
    )


def _entry(path: Path, folder: Path, target: Target) -> tuple[GeneratedEntry, int, str]:
    model, name = path.parent.name, path.name
    between = path.parent.relative_to(folder / "models").parts[:-1]
    linked = any(one.is_symlink() for one in (path.parent, path.parent.parent))
    if _FOLDER.fullmatch(model) is None or _NAME.fullmatch(name) is None or linked:
        raise _wrong(path, "is not called models/<model>/modeling_<model>.py")
    data = read(path)
    marker = MARKER_LINE.match(data)
    if marker is None:
        raise _wrong(path, "does not begin with the marker of an overlay")
    try:
        ast.parse(data)
    except (SyntaxError, ValueError) as error:
        raise _wrong(path, f"is not Python: {error}") from error
    relative = "/".join(("models", *between, model, name))
    stock = target.package / relative
    size = stock.stat().st_size if stock.is_file() else 0
    if size == len(data) and sha256(stock.read_bytes()) == marker["base"].decode():
        raise _wrong(path, f"is as long as the stock text ({size} bytes), so stale bytecode could not be told apart")
    entry = GeneratedEntry(
        model=model,
        path=relative,
        stock_sha256=marker["base"].decode(),
        stock_size=size,
        overlay_sha256=sha256(data),
        overlay_size=len(data),
        payload=relative,
        diff="",
        releases=(target.version or "",),
        edits=(),
        folder=folder,
    )
    return entry, int(marker["generator"]), marker["recipes"].decode()


def read(path: Path) -> bytes:
    """Return the bytes of a file that may be installed. Raises BundleError for a link, a large or an empty file."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_BYTES:
            raise _wrong(path, f"is not a plain file of 1 to {MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise _wrong(path, f"cannot be read ({error.strerror})") from error


def check_names(models: Sequence[str] | None, entries: Sequence[FileEntry]) -> None:
    """Raise UsageError for a model that a folder does not have."""
    known = sorted({entry.model for entry in entries})
    for name in models or ():
        if name not in known:
            hint = nearest(name, known)
            raise UsageError(
                "unknown-model",
                f"--models: {name} is not among the generated models: {', '.join(known)}"
                + (f"; did you mean {hint}?" if hint else ""),
                remedy=f"pass --models {hint or known[0]}, or leave --models out for all of them",
            )


def _wrong(path: Path, what: str) -> BundleError:
    return BundleError(
        "generated-damaged",
        f"{path} {what}. Nothing was written.",
        remedy="generate the folder again with `overlay gen --all --from-installed -o DIR`",
        paths=[path],
    )
