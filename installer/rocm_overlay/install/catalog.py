"""The bundle: which overlay fits which stock text. Everything is checked before it is used."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import rocm_overlay

from ..errors import BundleError
from .transaction.decode import MalformedError, Reader, parse
from .transaction.entry import is_sha256, sha256
from .transaction.receipt import BUNDLE as BUNDLE_ORIGIN

SCHEMA = "amd-overlay.manifest/1"
MAX_BYTES = 5_000_000
BUNDLE = Path(rocm_overlay.__file__).parent / "overlays"
_LINE = re.compile(r"[0-9]+\.[0-9]+")
_TARGET = re.compile(r"models/([a-z0-9_]+)/modeling_[a-z0-9_]+\.py")
_PAYLOAD = re.compile(r"models/([a-z0-9_]+)/modeling_[a-z0-9_]+\.[0-9a-f]{12}\.py")
_DIFF = re.compile(r"models/([a-z0-9_]+)/modeling_[a-z0-9_]+\.[0-9a-f]{12}\.diff")
_RELEASE = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")


@dataclass(frozen=True)
class Edit:
    """One edit span: byte offsets in the stock and in the overlay text, and the stock bytes that were replaced."""

    recipe: str
    qualname: str
    stock: tuple[int, int]
    overlay: tuple[int, int]
    stock_text: bytes


@dataclass(frozen=True)
class FileEntry:
    """An overlay for one exact stock text of one file."""

    model: str
    path: str
    stock_sha256: str
    stock_size: int
    overlay_sha256: str
    overlay_size: int
    payload: str
    diff: str
    releases: tuple[str, ...]
    edits: tuple[Edit, ...] = field(repr=False)
    folder: Path = field(repr=False)

    @property
    def origin(self) -> str:
        """Where the overlay comes from, as the receipt says it."""
        return BUNDLE_ORIGIN

    def fits(self, digest: str) -> bool:
        """Tell whether the overlay was made from this text."""
        return self.stock_sha256 == digest

    def overlay_bytes(self) -> bytes:
        """Return the overlay text. Raises BundleError unless its hash is the manifest's."""
        path = self.folder
        for part in self.payload.split("/"):
            path = path / part
            if path.is_symlink():
                raise _damaged(path, "is a symbolic link; the bundle has none")
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size != self.overlay_size:
                raise _damaged(path, f"has {status.st_size} bytes, expected a file of {self.overlay_size}")
            data = path.read_bytes()
        except OSError as error:
            raise _damaged(path, f"cannot be read ({error.strerror})") from error
        found = sha256(data)
        if found != self.overlay_sha256:
            raise _damaged(path, f"has sha256 {found}, expected {self.overlay_sha256}")
        return data

    def stock_bytes(self) -> bytes:
        """Return the stock text, derived from the overlay by undoing its edits. Raises BundleError on any mismatch."""
        data = self.overlay_bytes()
        parts, position = [], 0
        for edit in self.edits:
            parts += [data[position : edit.overlay[0]], edit.stock_text]
            position = edit.overlay[1]
        text = b"".join([*parts, data[position:]])
        if sha256(text) != self.stock_sha256:
            raise _damaged(self.folder / self.payload, f"does not lead back to the stock text {self.stock_sha256}")
        return text


@dataclass(frozen=True)
class Manifest:
    """All overlays of one line of releases, such as 4.57."""

    line: str
    generator: int
    recipes: str
    releases: tuple[str, ...]
    files: tuple[FileEntry, ...]
    sha256: str
    origin: str = ""
    """Empty for the bundle, a prefix of the version for overlays from elsewhere."""

    @property
    def version(self) -> str:
        """Name this set of overlays: origin, line, generator and recipes."""
        return f"{self.origin}{self.line}-g{self.generator}-{self.recipes}"

    def models(self) -> tuple[str, ...]:
        """Return the model names, sorted."""
        return tuple(sorted({file.model for file in self.files}))

    def by_path(self) -> dict[str, tuple[FileEntry, ...]]:
        """Group the entries by path below the package, in sorted order."""
        paths = sorted({file.path for file in self.files})
        return {path: tuple(file for file in self.files if file.path == path) for path in paths}


def lines(bundle: Path = BUNDLE) -> list[str]:
    """Return the release lines that the bundle has, oldest first."""
    if not bundle.is_dir():
        return []
    found = [entry.name for entry in bundle.iterdir() if _LINE.fullmatch(entry.name)]
    return sorted((name for name in found if (bundle / name / "manifest.json").is_file()), key=_line_key)


@lru_cache(maxsize=8)
def load(line: str, bundle: Path = BUNDLE) -> Manifest:
    """Read and check the manifest of a line. Raises BundleError."""
    path = bundle / line / "manifest.json"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from error
    try:
        manifest = _manifest(parse(data, "manifest.json"), path.parent, sha256(data))
    except MalformedError as error:
        raise _damaged(path, f"is not valid: {error}") from error
    if manifest.line != line:
        raise _damaged(path, f"describes line {manifest.line}, expected {line}")
    return manifest


def find(path: str, stock_sha256: str, bundle: Path = BUNDLE) -> FileEntry | None:
    """Return the overlay for a stock text at a path below the package, None where no line has one."""
    for line in lines(bundle):
        for file in load(line, bundle).files:
            if file.path == path and file.stock_sha256 == stock_sha256:
                return file
    return None


def stock_text(path: str, digest: str, bundle: Path = BUNDLE) -> bytes | None:
    """Return a stock text by hash: the second source of truth for revert. None where the bundle does not know it."""
    entry = find(path, digest, bundle)
    return None if entry is None else entry.stock_bytes()


def source(bundle: Path) -> Callable[[str, str], bytes | None]:
    """Return `stock_text` bound to a bundle: (package path, sha256) -> text or None."""
    return lambda path, digest: stock_text(path, digest, bundle)


def _line_key(line: str) -> tuple[int, ...]:
    return tuple(int(part) for part in line.split("."))


def _damaged(path: Path, what: str) -> BundleError:
    return BundleError(
        "bundle-damaged",
        f"{path} {what}.",
        remedy="reinstall transformers-rocm-overlay; if you generated overlays yourself, run `overlay gen --all` again",
        paths=[path],
    )


def _manifest(reader: Reader, folder: Path, digest: str) -> Manifest:
    if reader.text("schema") != SCHEMA:
        raise MalformedError(f"schema: found {reader.text('schema')!r}, expected {SCHEMA!r}")
    files = tuple(_file(file, folder) for file in reader.objects("files"))
    _check_together(files)
    releases = reader.texts("releases")
    for file in files:
        unknown = set(file.releases) - set(releases)
        if unknown:
            raise MalformedError(f"{file.path}: releases {sorted(unknown)} are not in the manifest's releases")
    return Manifest(
        line=reader.matching("line", _LINE),
        generator=reader.integer("generator"),
        recipes=reader.matching("recipes", re.compile(r"[0-9a-f]{12}")),
        releases=releases,
        files=files,
        sha256=digest,
    )


def _file(reader: Reader, folder: Path) -> FileEntry:
    path = reader.matching("path", _TARGET)
    payload, diff = reader.matching("payload", _PAYLOAD), reader.matching("diff", _DIFF)
    directory = path.rpartition("/")[0]
    if {payload.rpartition("/")[0], diff.rpartition("/")[0]} != {directory}:
        raise MalformedError(f"{reader.place('payload')}: {payload!r} and {diff!r} are not beside {path!r}")
    entry = FileEntry(
        model=reader.matching("model", re.compile(r"[a-z0-9_]+")),
        path=path,
        stock_sha256=_digest(reader, "stock_sha256"),
        stock_size=_size(reader, "stock_size"),
        overlay_sha256=_digest(reader, "overlay_sha256"),
        overlay_size=_size(reader, "overlay_size"),
        payload=payload,
        diff=diff,
        releases=_releases(reader),
        edits=tuple(_edit(edit) for edit in reader.objects("edits")),
        folder=folder,
    )
    _check_edits(entry, reader)
    return entry


def _edit(reader: Reader) -> Edit:
    stock, overlay = reader.integers("stock", 2), reader.integers("overlay", 2)
    text = reader.text("stock_text").encode("utf-8")
    if stock[1] - stock[0] != len(text):
        raise MalformedError(f"{reader.place('stock_text')}: {len(text)} bytes do not fill the span {list(stock)}")
    return Edit(reader.text("recipe"), reader.text("qualname"), (stock[0], stock[1]), (overlay[0], overlay[1]), text)


def _check_edits(entry: FileEntry, reader: Reader) -> None:
    """Edit spans must be sorted, disjoint, inside both texts, and explain the whole difference in length."""
    for name, size in (("stock", entry.stock_size), ("overlay", entry.overlay_size)):
        position = 0
        for edit in entry.edits:
            start, end = edit.stock if name == "stock" else edit.overlay
            if not position <= start <= end <= size:
                raise MalformedError(f"{reader.place('edits')}: span [{start}, {end}] of {name} is out of order")
            position = end
    growth = sum((edit.overlay[1] - edit.overlay[0]) - (edit.stock[1] - edit.stock[0]) for edit in entry.edits)
    if entry.stock_size + growth != entry.overlay_size:
        raise MalformedError(f"{reader.place('edits')}: the spans do not explain the overlay's size")


def _check_together(files: tuple[FileEntry, ...]) -> None:
    """No two entries for one stock text, no paths that differ in case only, no overlay as long as a stock text."""
    texts = [f"{file.path} {file.stock_sha256}" for file in files]
    payloads = [file.payload for file in files]
    for values in (texts, payloads):
        if len(set(values)) != len(values):
            repeated = sorted({value for value in values if values.count(value) > 1})
            raise MalformedError(f"files: repeated entries {', '.join(repeated)}")
    sizes = {(file.path, file.stock_size) for file in files}
    for file in files:
        if (file.path, file.overlay_size) in sizes:
            raise MalformedError(f"{file.path}: the overlay is as long as a stock text ({file.overlay_size} bytes)")


def _digest(reader: Reader, key: str) -> str:
    value = reader.text(key)
    if not is_sha256(value):
        raise MalformedError(f"{reader.place(key)}: not a sha256")
    return value


def _size(reader: Reader, key: str) -> int:
    value = reader.integer(key)
    if not 0 < value <= MAX_BYTES:
        raise MalformedError(f"{reader.place(key)}: {value} is not between 1 and {MAX_BYTES}")
    return value


def _releases(reader: Reader) -> tuple[str, ...]:
    releases = reader.texts("releases")
    if not releases or not all(_RELEASE.fullmatch(release) for release in releases):
        raise MalformedError(f"{reader.place('releases')}: expected release numbers, found {list(releases)}")
    return releases
