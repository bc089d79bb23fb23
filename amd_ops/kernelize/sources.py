"""Where a kernel comes from: a Python object, a local repository, a hub repository. Nothing is loaded before it is
applied.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn

from . import hub
from .errors import KernelLoadError, RegistrationError, unknown


class Source(Protocol):
    """Anything with ``load()``. Seed-style repository objects fit as they are."""

    def load(self) -> Any:
        """Return a layer class, a function or an nn.Module class whose forward is the function."""


@dataclass(frozen=True)
class ObjectSource:
    """A Python object given directly."""

    value: Any

    def load(self) -> Any:
        return self.value

    def __str__(self) -> str:
        return getattr(self.value, "__qualname__", None) or repr(self.value)


@dataclass(frozen=True, eq=False)
class LoaderSource:
    """A user's object with a ``load()`` method (FuncRepositoryProtocol, LayerRepositoryProtocol)."""

    loader: Source

    def load(self) -> Any:
        try:
            return self.loader.load()
        except Exception as error:
            raise KernelLoadError(f"{self}: load() failed: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return f"repository object {type(self.loader).__qualname__}"


def _named(source: LocalSource | HubSource, holder: Any) -> Any:
    if not hasattr(holder, source.name):
        known = [name for name in vars(holder) if not name.startswith("_")]
        raise KernelLoadError(f"{source}: {unknown('layer' if source.layer else 'function', source.name, known)}")
    return getattr(holder, source.name)


@dataclass(frozen=True)
class LocalSource:
    """A name in a local repository, loaded without the kernels library.

    The repository is a package folder itself, a folder that holds the package, or has the layout of the kernels hub
    (``build/torch-universal/...``). Layers are looked up in ``layers.py``, functions in the package.
    """

    path: Path
    package: str | None
    name: str
    layer: bool

    def load(self) -> Any:
        module = import_folder(self._folder(), str(self))
        holder: Any = _submodule(module, "layers") if self.layer else module
        if holder is None:
            raise KernelLoadError(f"{self}: the package has no layers.py (found in {self._folder()})")
        return _named(self, holder)

    def _folder(self) -> Path:
        if not self.path.is_dir():
            raise KernelLoadError(f"{self}: there is no folder {self.path}")
        tried = []
        for base in (self.path, *(root / v for root in (self.path / "build", self.path) for v in variants())):
            for folder in (base / self.package, base) if self.package else (base,):
                named = self.package is None or folder.name == self.package or base != self.path
                if named and any((folder / f).is_file() for f in ("__init__.py", "layers.py")):
                    return folder
                tried.append(str(folder))
        raise KernelLoadError(
            f"{self}: no package {self.package or '(any)'} in {self.path}; looked in {', '.join(dict.fromkeys(tried))}"
        )

    def __str__(self) -> str:
        package = f" package {self.package}" if self.package else ""
        return f"{self.path}{package}:{self.name}"


@dataclass(frozen=True)
class HubSource:
    """A name in a repository of the kernels hub, loaded by the kernels library (extra ``[hub]``)."""

    repo_id: str
    name: str
    layer: bool
    revision: str | None = None
    version: int | str | None = None
    trust_remote_code: bool = False

    def load(self) -> Any:
        module = hub.get_kernel(self.repo_id, self.revision, self.version, self.trust_remote_code)
        holder = getattr(module, "layers", None) if self.layer else module
        if holder is None:
            raise KernelLoadError(f"{self}: the repository defines no layers")
        return _named(self, holder)

    def __str__(self) -> str:
        pin = self.revision if self.revision is not None else f"version {self.version}"
        return f"{self.repo_id} ({pin}):{self.name}"


def variants() -> tuple[str, ...]:
    """Name the hub-layout build folders this machine can use, best first. Compiled variants are the kernels library's
    business.
    """
    backend = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
    return (f"torch-{backend}", "torch-universal")


def import_folder(folder: Path, what: str) -> ModuleType:
    """Import a package folder under a name made from its path, so that two repositories never share a module."""
    init = folder / "__init__.py"
    target = init if init.is_file() else folder / "layers.py"
    digest = hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:12]
    name = f"_amd_ops_kernel_{folder.name.replace('-', '_')}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    locations = [str(folder)] if target is init else None
    spec = importlib.util.spec_from_file_location(name, target, submodule_search_locations=locations)
    if spec is None or spec.loader is None:
        raise KernelLoadError(f"{what}: {target} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise KernelLoadError(f"{what}: importing {target} failed: {type(error).__name__}: {error}") from error
    return module


def _submodule(module: ModuleType, name: str) -> ModuleType | None:
    found = getattr(module, name, None)
    if isinstance(found, ModuleType):
        return found
    file = Path(module.__file__ or "")
    if file.name == f"{name}.py":
        return module
    if not (file.parent / f"{name}.py").is_file():
        return None
    try:
        return importlib.import_module(f"{module.__name__}.{name}")
    except Exception as error:
        raise KernelLoadError(f"importing {file.parent / name}.py failed: {type(error).__name__}: {error}") from error


def hub_source(
    where: str, repo_id: Any, name: str, layer: bool, revision: Any, version: Any, trust_remote_code: bool
) -> HubSource:
    """Check the arguments of a hub registration: an ``owner/name`` id, and one of revision and version."""
    if not isinstance(repo_id, str) or repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise RegistrationError(f"{where}: repo_id must look like 'owner/name', found {repo_id!r}")
    if revision is not None and version is not None:
        raise RegistrationError(
            f"{where}: give revision or version, not both (revision={revision!r}, version={version!r})"
        )
    if revision is not None and not isinstance(revision, str):
        raise RegistrationError(f"{where}: revision must be a string, found {revision!r}")
    if version is not None and (isinstance(version, bool) or not isinstance(version, int | str)):
        raise RegistrationError(f"{where}: version must be an integer or a string, found {version!r}")
    if revision is None and version is None:
        revision = "main"
    return HubSource(repo_id, name, layer, revision, version, trust_remote_code)


def local_source(where: str, repo_path: Any, package: str | None, name: str, layer: bool) -> LocalSource:
    """Check the arguments of a local registration. The folder itself is looked at when the kernel is applied."""
    if not isinstance(repo_path, str | Path) or not str(repo_path):
        raise RegistrationError(f"{where}: repo_path must be a path, found {repo_path!r}")
    if package is not None and not package.isidentifier():
        raise RegistrationError(f"{where}: package_name must be a Python package name, found {package!r}")
    return LocalSource(Path(repo_path).expanduser(), package, name, layer)


def as_function(value: Any, what: str) -> Callable[..., Any]:
    """Return the callable behind a loaded function kernel: a function, a module's forward, or an instance of a layer
    class.
    """
    if isinstance(value, type) and issubclass(value, nn.Module):
        value = value()
    if isinstance(value, nn.Module):
        return value.forward
    if not callable(value):
        raise KernelLoadError(f"{what}: {value!r} is not callable")
    return value  # type: ignore[no-any-return]
