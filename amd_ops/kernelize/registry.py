"""What is registered: layer kernels, the classes they are bound to, function kernels. Registries nest through
``use_kernels``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from . import conditions
from .conditions import DeviceSpec, Mode, mode_name, parse_device, parse_mode
from .errors import RegistrationError, unknown
from .forwards import Guard, parse_guard
from .sources import LoaderSource, ObjectSource, Source, hub_source, local_source

Condition = tuple[DeviceSpec | None, Mode | None]


@dataclass(frozen=True, eq=False)
class LayerKernel:
    """One registered implementation of a named layer kernel, with the conditions it holds for."""

    name: str
    source: Source
    device: DeviceSpec | None
    mode: Mode | None
    guard: Guard | None = None

    @property
    def condition(self) -> Condition:
        return self.device, self.mode

    def __str__(self) -> str:
        return f"{self.name!r} from {self.source} [{self.device or 'any device'}, {mode_name(self.mode)}]"


@dataclass(frozen=True, eq=False)
class FunctionKernel:
    """One registered implementation of a function of a module."""

    func_name: str
    target_module: str
    source: Source
    device: DeviceSpec | None
    mode: Mode | None

    @property
    def target(self) -> str:
        return f"{self.target_module}.{self.func_name}"

    @property
    def condition(self) -> Condition:
        return self.device, self.mode

    def __str__(self) -> str:
        return f"{self.target} from {self.source} [{self.device or 'any device'}, {mode_name(self.mode)}]"


@dataclass
class Registry:
    """Layer kernels by name, kernel names by layer class, function kernels by target. The latest registration wins."""

    layers: dict[str, list[LayerKernel]] = field(default_factory=dict)
    classes: dict[type[nn.Module], str] = field(default_factory=dict)
    functions: dict[str, list[FunctionKernel]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def copy(self) -> Registry:
        """Return an independent registry with the same content."""
        with self.lock:
            return Registry(
                {name: list(kernels) for name, kernels in self.layers.items()},
                dict(self.classes),
                {target: list(kernels) for target, kernels in self.functions.items()},
            )

    def add_layer(self, kernel: LayerKernel) -> None:
        """Add a layer kernel; one with the same name, device and mode is replaced.

        Raises SignatureError when it does not fit a class that is bound already, RegistrationError on a cycle.
        """
        with self.lock:
            if isinstance(kernel.source, ObjectSource):
                implementation = conditions.check_stateless(kernel.source.value, kernel.name)
                for cls, name in self.classes.items():
                    if name == kernel.name:
                        conditions.check_layer(implementation, cls, kernel.name)
                        self._refuse_cycle(cls, kernel.name, kernel)
            rest = [k for k in self.layers.get(kernel.name, []) if k.condition != kernel.condition]
            self.layers[kernel.name] = [*rest, kernel]

    def bind_class(self, cls: type[nn.Module], name: str) -> None:
        """Say that instances of a class are replaced by the kernel of that name."""
        with self.lock:
            if name not in self.layers:
                raise RegistrationError(
                    f"register_external_layer({cls.__name__}): {unknown('kernel', name, self.layers)}"
                )
            for kernel in self.layers[name]:
                if isinstance(kernel.source, ObjectSource):
                    conditions.check_layer(kernel.source.value, cls, name)
            self._refuse_cycle(cls, name, None)
            self.classes[cls] = name

    def add_function(self, kernel: FunctionKernel) -> None:
        """Add a function kernel; one with the same target, device and mode is replaced. Raises RegistrationError on a
        cycle.
        """
        with self.lock:
            self._refuse_function_cycle(kernel)
            rest = [k for k in self.functions.get(kernel.target, []) if k.condition != kernel.condition]
            self.functions[kernel.target] = [*rest, kernel]

    def _refuse_cycle(self, cls: type[nn.Module], name: str, extra: LayerKernel | None) -> None:
        """Refuse a layer whose kernel is a class that is itself replaced by ... that layer: it would never end."""
        pending = [(name, [cls.__name__])]
        seen: set[str] = set()
        while pending:
            kernel_name, path = pending.pop()
            if kernel_name in seen:
                continue
            seen.add(kernel_name)
            kernels = [*self.layers.get(kernel_name, []), *([extra] if extra and extra.name == kernel_name else [])]
            for owner in (k.source.value for k in kernels if isinstance(k.source, ObjectSource)):
                way = [*path, f"kernel {kernel_name!r}", owner.__name__]
                if owner is cls:
                    raise RegistrationError(f"cyclic registration: {' -> '.join(way)}")
                if owner in self.classes:
                    pending.append((self.classes[owner], way))

    def _refuse_function_cycle(self, kernel: FunctionKernel) -> None:
        path, step = [kernel.target], kernel
        seen = {kernel.target}
        while isinstance(step.source, ObjectSource):
            value = step.source.value
            home = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', '')}"
            module = sys.modules.get(step.target_module)
            original = getattr(module, step.func_name, None)
            path.append(home if home != step.target else f"{home} (itself)")
            if home in seen or value is original:
                raise RegistrationError(f"cyclic registration: {' -> '.join(path)}")
            seen.add(home)
            following = [k for k in self.functions.get(home, []) if isinstance(k.source, ObjectSource)]
            if not following:
                return
            step = following[-1]


_GLOBAL = Registry()
_SCOPED: ContextVar[Registry | None] = ContextVar("amd_ops_kernel_registry", default=None)


def current_registry() -> Registry:
    """Return the registry of the innermost ``use_kernels`` block, else the process-wide one."""
    return _SCOPED.get() or _GLOBAL


def scope(registry: Registry) -> Any:
    """Make a registry the current one of this context; returns the token for ``unscope``."""
    return _SCOPED.set(registry)


def unscope(token: Any) -> None:
    """Undo ``scope``."""
    _SCOPED.reset(token)


def _one_source(where: str, given: dict[str, Any]) -> str:
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise RegistrationError(f"{where}: give exactly one of {', '.join(given)}; found {', '.join(named) or 'none'}")
    return named[0]


def _check_name(where: str, what: str, name: Any, dotted: bool = False) -> str:
    parts = name.split(".") if isinstance(name, str) and dotted else [name]
    if not isinstance(name, str) or not name or (dotted and not all(part.isidentifier() for part in parts)):
        raise RegistrationError(f"{where}: {what} must be a {'dotted Python ' if dotted else ''}name, found {name!r}")
    return name


def register_layer_kernel(
    kernel_name: str,
    layer: type[nn.Module] | None = None,
    *,
    repo_path: str | Path | None = None,
    repo_id: str | None = None,
    repo: Source | None = None,
    package_name: str | None = None,
    layer_name: str | None = None,
    version: int | str | None = None,
    revision: str | None = None,
    device: str | DeviceSpec | None = None,
    arch: str | Iterable[str] | None = None,
    mode: str | Mode | None = None,
    guard: Guard | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Register an implementation for a named layer kernel.

    Give one of: ``layer`` (a stateless nn.Module class), ``repo_path`` with ``package_name`` (a local repository),
    ``repo_id`` with ``revision`` or ``version`` (a hub repository, extra ``[hub]``), ``repo`` (an object with
    ``load()``). Several implementations may share a name: the one whose device, arch and mode fit best is taken.
    Without ``device`` or ``mode`` it holds for any.

    Raises RegistrationError or SignatureError; a repository is opened when the kernel is applied, not here.

    Examples:
        >>> class Faster(nn.Module):
        ...     def forward(self, x):
        ...         return x
        >>> with amd_ops.use_kernels():
        ...     amd_ops.register_layer_kernel("MyNorm", Faster, device="rocm", arch="gfx94*", mode="inference")
    """
    where = f"register_layer_kernel({kernel_name!r})"
    _check_name(where, "kernel_name", kernel_name)
    chosen = _one_source(where, {"layer": layer, "repo_path": repo_path, "repo_id": repo_id, "repo": repo})
    source: Source
    if chosen in ("repo_path", "repo_id"):
        name = _check_name(where, "layer_name", layer_name)
        if chosen == "repo_id":
            source = hub_source(where, repo_id, name, True, revision, version, trust_remote_code)
        else:
            source = local_source(where, repo_path, package_name, name, True)
    else:
        source = ObjectSource(layer) if chosen == "layer" else LoaderSource(_loader(where, repo))
    if chosen != "repo_id" and (revision is not None or version is not None):
        raise RegistrationError(f"{where}: revision and version belong to repo_id, not to {chosen}")
    kernel = LayerKernel(
        kernel_name, source, parse_device(device, arch, where), parse_mode(mode, where), parse_guard(guard, where)
    )
    current_registry().add_layer(kernel)


def register_external_layer(cls: type[nn.Module], kernel_name: str) -> None:
    """Bind a layer class, one that nobody decorated, to a registered kernel name.

    Subclasses that keep the class's forward are bound with it; those that define their own are not.

    Examples:
        >>> class Norm(nn.Module):
        ...     def forward(self, x):
        ...         return x / x.norm()
        >>> class Faster(nn.Module):
        ...     def forward(self, x):
        ...         return x * x.square().sum().rsqrt()
        >>> with amd_ops.use_kernels({"layers": {"MyNorm": {"layer": Faster}}}):
        ...     amd_ops.register_external_layer(Norm, "MyNorm")
    """
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise RegistrationError(f"register_external_layer: {cls!r} is not an nn.Module class")
    current_registry().bind_class(cls, kernel_name)


def register_function_kernel(
    func_name: str,
    target_module: str,
    func_impl: Callable[..., Any] | None = None,
    *,
    repo: Source | None = None,
    repo_id: str | None = None,
    repo_path: str | Path | None = None,
    package_name: str | None = None,
    impl_name: str | None = None,
    revision: str | None = None,
    version: int | str | None = None,
    device: str | DeviceSpec | None = None,
    arch: str | Iterable[str] | None = None,
    mode: str | Mode | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Register an implementation for the function ``target_module.func_name``.

    Give one of: ``func_impl`` (a callable, or an nn.Module class whose forward is the function), ``repo`` (an object
    with ``load()``), ``repo_id`` (hub) or ``repo_path`` (local); ``impl_name`` is the function's name there when it
    differs. The target is imported when the kernel is applied. Raises RegistrationError.

    Examples:
        >>> with amd_ops.use_kernels():
        ...     amd_ops.register_function_kernel("relu", "torch.nn.functional", torch.relu, device="cpu")
    """
    where = f"register_function_kernel({func_name!r}, {target_module!r})"
    _check_name(where, "func_name", func_name, dotted=True)
    _check_name(where, "target_module", target_module, dotted=True)
    chosen = _one_source(where, {"func_impl": func_impl, "repo": repo, "repo_id": repo_id, "repo_path": repo_path})
    source: Source
    name = impl_name or func_name
    if chosen == "repo_id":
        source = hub_source(where, repo_id, name, False, revision, version, trust_remote_code)
    elif chosen == "repo_path":
        source = local_source(where, repo_path, package_name, name, False)
    elif chosen == "repo":
        source = LoaderSource(_loader(where, repo))
    else:
        if not callable(func_impl):
            raise RegistrationError(f"{where}: func_impl {func_impl!r} is not callable")
        source = ObjectSource(func_impl)
    if chosen != "repo_id" and (revision is not None or version is not None):
        raise RegistrationError(f"{where}: revision and version belong to repo_id, not to {chosen}")
    kernel = FunctionKernel(
        func_name, target_module, source, parse_device(device, arch, where), parse_mode(mode, where)
    )
    current_registry().add_function(kernel)


def _loader(where: str, repo: Any) -> Source:
    if not callable(getattr(repo, "load", None)):
        raise RegistrationError(f"{where}: repo {repo!r} has no load() method")
    return repo  # type: ignore[no-any-return]
