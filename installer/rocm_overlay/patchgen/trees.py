"""Where stock files come from: a transformers package folder or a transformers wheel. Nothing is imported."""

from __future__ import annotations

import importlib.util
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath

from rocm_overlay.install import catalog
from rocm_overlay.install.catalog import FileEntry
from rocm_overlay.install.transaction.states import MARKER_LINE

from ..errors import TargetError, nearest

WHEELS_VARIABLE = "AMD_OVERLAY_WHEELS"
_RELEASE = re.compile(r"[0-9]+(?:\.[0-9]+)+")

# TensorFlow and Flax files lie beside the PyTorch ones; they are never ours.
_MODELING = re.compile(r"models/(?:[^/]+/)+modeling_(?!tf_|flax_)[^/]+\.py")
_VERSION = re.compile(rb'^__version__\s*=\s*["\']([^"\']+)["\']', re.MULTILINE)


class Tree:
    """The text files of one transformers package, by paths relative to it (``models/llama/modeling_llama.py``)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        """Return one file's bytes; OSError or KeyError if it cannot be read."""
        return (self.root / path).read_bytes()

    def has(self, path: str) -> bool:
        """Say whether the package has this file."""
        return (self.root / path).is_file()

    def label(self, path: str) -> str:
        """How a file is called in messages."""
        return str(self.root / path)

    def _names(self) -> Iterable[str]:
        return (file.relative_to(self.root).as_posix() for file in self.root.glob("models/**/modeling_*.py"))

    @cached_property
    def modeling_files(self) -> tuple[str, ...]:
        """Every PyTorch modeling file, sorted."""
        return tuple(sorted(name for name in self._names() if _MODELING.fullmatch(name)))

    @property
    def version(self) -> str | None:
        """The release that the package says it is."""
        found = _VERSION.search(self.read("__init__.py"))
        return found[1].decode("ascii") if found else None

    def path_of(self, model: str) -> str:
        """Return the path of a model's modeling file.

        Args:
            model: ``llama``, or a module name as in ``transformers.models.llama.modeling_llama``.

        Raises:
            TargetError: the package has no such file.
        """
        if "." in model:
            path = PurePosixPath(*model.removeprefix("transformers.").split(".")).as_posix() + ".py"
        else:
            path = f"models/{model}/modeling_{model}.py"
        if _MODELING.fullmatch(path) and self.has(path):
            return path
        known = {PurePosixPath(file).parent.name for file in self.modeling_files}
        wanted = PurePosixPath(path).parent.name if "." in model else model
        raise TargetError(
            "target",
            f"unknown model {model!r}",
            expected=f"a model of {self.root}, or a module such as transformers.models.llama.modeling_llama",
            found=f"no {path}",
            nearest=nearest(wanted, known),
        )


class WheelTree(Tree):
    """The same, read from a wheel."""

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.root)

    def read(self, path: str) -> bytes:
        """Return one file's bytes; KeyError if the wheel lacks it."""
        return self._archive.read(f"transformers/{path}")

    def has(self, path: str) -> bool:
        """Say whether the wheel has this file."""
        return f"transformers/{path}" in self._archive.namelist()

    def _names(self) -> Iterable[str]:
        prefix = "transformers/"
        return (name.removeprefix(prefix) for name in self._archive.namelist() if name.startswith(prefix))


class BundleTree(Tree):
    """The stock texts that the committed overlays of a release lead back to: no download, and only those models."""

    def __init__(self, release: str, entries: Mapping[str, FileEntry], folder: Path) -> None:
        super().__init__(folder)
        self._release = release
        self._entries = entries

    def read(self, path: str) -> bytes:
        """Return one file's bytes; KeyError where the release has no overlay for it."""
        return self._entries[path].stock_bytes()

    def has(self, path: str) -> bool:
        """Say whether an overlay of the release is committed for this file."""
        return path in self._entries

    def label(self, path: str) -> str:
        """How a file is called in messages."""
        return f"{path} of {self._release}"

    def _names(self) -> Iterable[str]:
        return self._entries

    @property
    def version(self) -> str | None:
        """The release."""
        return self._release


def named_tree(name: str, environment: Mapping[str, str] = os.environ) -> Tree:
    """Return the tree that a user means: a package folder, a wheel, or a release.

    A release is a wheel of that name in the folder $AMD_OVERLAY_WHEELS, else one of ours: then only the models that are
    committed for it are in the tree.

    Raises:
        TargetError: neither a package nor a known release.
    """
    if not _RELEASE.fullmatch(name) or Path(name).exists():
        return open_tree(Path(name))
    folder = environment.get(WHEELS_VARIABLE)
    for wheel in sorted(Path(folder).glob(f"transformers-{name}-*.whl")) if folder else ():
        return open_release(name, wheel)
    known: list[str] = []
    for line in catalog.lines():
        manifest = catalog.load(line)
        known += manifest.releases
        if name in manifest.releases:
            entries = {file.path: file for file in manifest.files if name in file.releases}
            return BundleTree(name, entries, catalog.BUNDLE / line)
    raise TargetError(
        "target",
        f"{name} is not a release of ours",
        expected=f"one of {', '.join(known)}, a transformers package folder, or a wheel",
        nearest=nearest(name, known),
        remedy=f"pass a folder or wheel, or set {WHEELS_VARIABLE} to a folder with its wheel",
    )


def open_tree(path: Path) -> Tree:
    """Return the tree at a package folder, at a folder that holds one, or in a wheel.

    Raises:
        TargetError: it is none of them.
    """
    if path.suffix == ".whl" and path.is_file():
        try:
            tree: Tree = WheelTree(path)
            if tree.modeling_files:
                return tree
        except zipfile.BadZipFile as error:
            raise TargetError(
                "target",
                f"{path} is not a whole wheel",
                expected="a transformers wheel",
                found=f"an archive that was not downloaded to its end, or is damaged ({error})",
                remedy="download it again",
            ) from error
    for root in (path, path / "transformers"):
        if (root / "models").is_dir() and (root / "__init__.py").is_file():
            return Tree(root)
    raise TargetError(
        "target",
        f"no transformers package at {path}",
        expected="the folder site-packages/transformers, a folder that holds it, or a transformers wheel",
        found="nothing there" if not path.exists() else "something else",
    )


def installed_tree() -> Tree:
    """Return the transformers that the running interpreter would import, without importing it.

    Raises:
        TargetError: there is none.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.origin:
        raise TargetError(
            "target",
            "this interpreter has no transformers",
            expected="an installed transformers, or --source with a package folder",
            remedy="pass --source PACKAGE_DIR",
        )
    return open_tree(Path(spec.origin).parent)


def open_release(version: str, path: Path) -> Tree:
    """Return the tree of a release, having compared the version that it says it is.

    Raises:
        TargetError: no package there, or one of another version.
    """
    tree = open_tree(path)
    if tree.version != version:
        raise TargetError(
            "target",
            f"{path} is not the source of release {version}",
            expected=version,
            found=tree.version or "no version",
        )
    return tree


def read_stock(tree: Tree, path: str) -> bytes:
    """Read a file of a tree; for an overlay of ours that nobody edited, the stock text that it was made from.

    Raises:
        TargetError: the file cannot be read.
    """
    data = read_modeling(tree, path)
    marker = MARKER_LINE.match(data)
    entry = catalog.find(path, marker["base"].decode()) if marker else None
    return entry.stock_bytes() if entry and entry.overlay_sha256 == sha256(data).hexdigest() else data


def read_modeling(tree: Tree, path: str) -> bytes:
    """Read a file of a tree, turning a failure into one sentence.

    Raises:
        TargetError: the file cannot be read.
    """
    try:
        return tree.read(path)
    except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        found = str(error) or type(error).__name__
        raise TargetError("target", f"cannot read {tree.label(path)}", found=found) from error
