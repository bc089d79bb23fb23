"""`overlay install --replacements DIR`: modeling files that the user wrote, installed and reverted like overlays.

DIR holds ``models/<model>/modeling_<model>.py`` (or the folders below ``models`` directly), or single files
``modeling_<model>.py`` such as `overlay gen CONFIG` writes in its overlay mode. A file of a patch config names the text
that it was made from, and fits that text alone; a file of the user's own fits what is there, and the receipt remembers
what that was.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import BundleError, UsageError
from . import record
from .catalog import FileEntry, Manifest
from .generated import check_names, read
from .target import Target
from .transaction.entry import sha256
from .transaction.receipt import OWN
from .transaction.states import MARKER

PREFIX = "own-"
ANY = ""
"""What stands for the base of a file that does not say what it was made from."""
_NAME = re.compile(r"modeling_([a-z0-9_]+)\.py")
_CONFIG_MARKER = re.compile(rb"# amd-patchgen/1 base=sha256:(?P<base>[0-9a-f]{64}) ")


@dataclass(frozen=True)
class OwnEntry(FileEntry):
    """A replacement that the user wrote; ``stock_sha256`` is ANY unless the file says what it was made from."""

    text: bytes = field(repr=False)

    @property
    def origin(self) -> str:
        """Where the file comes from."""
        return OWN

    def fits(self, digest: str) -> bool:
        """Tell whether the file may replace this text."""
        return self.stock_sha256 in (ANY, digest)

    def overlay_bytes(self) -> bytes:
        """Return the text as it was read when the folder was examined."""
        return self.text

    def stock_bytes(self) -> bytes:
        """Refuse: only the blobs have the text that was there."""
        raise _wrong(Path(self.payload), "does not carry the text that it replaces")


def load(folder: Path, target: Target, models: Sequence[str] | None) -> Manifest:
    """Read and check a folder of replacements. Raises UsageError and BundleError."""
    entries = [_entry(file, model, folder, target) for file, model in _files(folder)]
    if not entries:
        raise UsageError(
            "no-replacements",
            f"--replacements {folder} has no modeling file.",
            remedy="put files there as models/<model>/modeling_<model>.py",
            paths=[folder],
        )
    paths = [entry.path for entry in entries]
    for path in paths:
        if paths.count(path) > 1:
            raise _wrong(folder, f"has several files for {path}")
    check_names(models, entries)
    digest = sha256("".join(f"{one.path} {one.overlay_sha256}\n" for one in entries).encode("ascii"))
    return Manifest(
        line=".".join((target.version or "0.0").split(".")[:2]),
        generator=0,
        recipes=digest[:12],
        releases=(target.version or "",),
        files=tuple(entries),
        sha256=digest,
        origin=PREFIX,
    )


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, model). Raises UsageError for Python files that could not be installed: half a change is none."""
    if not folder.is_dir():
        raise UsageError(
            "no-replacements",
            f"--replacements {folder} is not a folder.",
            remedy="pass a folder with models/<model>/modeling_<model>.py",
            paths=[folder],
        )
    root = folder / "models" if (folder / "models").is_dir() else folder
    for file in sorted({*root.rglob("*.py"), *folder.glob("*.py")}):
        if "__pycache__" in file.parts or file.name == "__init__.py":
            continue
        match = _NAME.fullmatch(file.name)
        inside = file.parent.parent == root
        if match is None or not (inside or file.parent == folder):
            raise UsageError(
                "not-a-modeling-file",
                f"{file} cannot be installed: only models/<model>/modeling_<model>.py are replaced, and no file is "
                "added to transformers. Nothing was written.",
                remedy="keep other code in a package of your own and import it from the modeling file",
                paths=[file],
            )
        yield file, file.parent.name if inside else match[1]


def _entry(file: Path, model: str, folder: Path, target: Target) -> OwnEntry:
    data = read(file)
    path = f"models/{model}/{file.name}"
    # A file that RECORD lists and that is gone is damage, of which planning says more.
    if not (target.package / path).is_file() and not record.load(target.dist_info).lists(path):
        raise UsageError(
            "no-such-model",
            f"{file}: transformers {target.version} has no {target.package / path}, and no file is added to it. "
            "Nothing was written.",
            remedy="rename it like the file that it shall replace, or take it out of the folder",
            paths=[file, target.package / path],
        )
    if data.startswith(MARKER):
        raise _wrong(file, "is an overlay of this program: pass its folder with --generated")
    try:
        ast.parse(data)
    except (SyntaxError, ValueError) as error:
        raise _wrong(file, f"is not Python: {error}") from error
    made_from = _CONFIG_MARKER.match(data)
    return OwnEntry(
        model=model,
        path=path,
        stock_sha256=made_from["base"].decode() if made_from else ANY,
        stock_size=0,
        overlay_sha256=sha256(data),
        overlay_size=len(data),
        payload=str(file),
        diff="",
        releases=(target.version or "",),
        edits=(),
        folder=folder,
        text=data,
    )


def lost_names(target: Target, entry: FileEntry, base: bytes) -> list[str]:
    """Return the names that other files of the package import from this one, and that the replacement lacks."""
    lost = _names(base) - _names(entry.overlay_bytes())
    if not lost:
        return []
    stem = entry.path.rpartition("/")[2].removesuffix(".py")
    wanted = set()
    for file in sorted(target.package.rglob("*.py")):
        if file == target.package / entry.path:
            continue
        text = file.read_bytes()
        if stem.encode() in text or file.name == "modeling_auto.py":
            wanted |= {name for name in lost if re.search(rb"\b%s\b" % name.encode(), text)}
    return sorted(wanted)


def _names(data: bytes) -> set[str]:
    """The top-level names that a module defines and others may import."""
    found: set[str] = set()
    for node in ast.parse(data).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("__")}


def together(first: Manifest, second: Manifest) -> Manifest:
    """Return both sets as one. Raises UsageError where both have a file for one path."""
    both = sorted({one.path for one in first.files} & {one.path for one in second.files})
    if both and first.origin:
        raise UsageError(
            "two-origins",
            f"{both[0]} is both in the folder of --generated and in that of --replacements, expected one of them.",
            remedy="take the file out of one of the two folders",
            paths=both,
        )
    return replace(first, files=(*(one for one in first.files if one.path not in both), *second.files))


def _wrong(path: Path, what: str) -> BundleError:
    return BundleError(
        "replacement-unusable",
        f"{path} {what}. Nothing was written.",
        remedy="correct the file, or take it out of the folder",
        paths=[path],
    )
