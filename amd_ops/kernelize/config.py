"""Registration in bulk: a mapping, a YAML file or a TOML file with ``layers`` and ``functions``; and scoped
registration.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import ready
from .errors import RegistrationError, unknown
from .registry import (
    Registry,
    current_registry,
    register_external_layer,
    register_function_kernel,
    register_layer_kernel,
    scope,
    unscope,
)

_SECTIONS = ("layers", "functions")


def register_kernels(config: Mapping[str, Any] | str | Path) -> None:
    """Register every layer and function kernel of a mapping, or of a ``.toml``, ``.yaml`` or ``.yml`` file.

    ``layers`` maps kernel names to the arguments of register_layer_kernel (and may name the classes it replaces as
    ``external_layer: "package.module.Class"``), ``functions`` maps function names to those of
    register_function_kernel; an entry may be a list of such mappings, one per device or mode. All or nothing: an entry
    that fails registers none. Relative ``repo_path`` values of a file are taken from the file's folder.

    Examples:
        >>> class Faster(nn.Module):
        ...     def forward(self, x):
        ...         return x
        >>> with amd_ops.use_kernels():
        ...     amd_ops.register_kernels({"layers": {"MyNorm": [{"layer": Faster, "mode": "inference"}]}})
    """
    base = None
    if isinstance(config, str | Path):
        base = Path(config).resolve().parent
        config = read_config(Path(config))
    if not isinstance(config, Mapping):
        raise RegistrationError(f"register_kernels: expected a mapping or a file, found {type(config).__name__}")
    for section in config:
        if section not in _SECTIONS:
            raise RegistrationError(f"register_kernels: {unknown('section', str(section), _SECTIONS)}")
    target = current_registry()
    trial = target.copy()
    token = scope(trial)
    try:
        for name, entry in _entries(config, "layers"):
            _register_layer(name, _resolved(entry, base))
        for name, entry in _entries(config, "functions"):
            arguments = _resolved(entry, base)
            _check_arguments(f"functions.{name}", arguments, register_function_kernel, {"func_name"})
            register_function_kernel(name, **arguments)
    finally:
        unscope(token)
    with target.lock:
        target.layers, target.classes, target.functions = trial.layers, trial.classes, trial.functions


def read_config(path: Path) -> Mapping[str, Any]:
    """Read a TOML or YAML file; YAML needs pyyaml (extra ``[yaml]``), TOML needs Python 3.11 or tomli."""
    if not path.is_file():
        raise RegistrationError(f"register_kernels: there is no file {path}")
    suffix = path.suffix.lower()
    if suffix == ".toml":
        reader = _optional(("tomllib", "tomli"), "reading TOML on Python 3.10 needs tomli: pip install tomli")
        problem: type[Exception] = reader.TOMLDecodeError
        parse: Callable[[str], Any] = reader.loads
    elif suffix in (".yaml", ".yml"):
        reader = _optional(("yaml",), "reading YAML needs pyyaml: pip install 'transformers-rocm-overlay[yaml]'")
        problem, parse = reader.YAMLError, reader.safe_load
    else:
        raise RegistrationError(f"register_kernels: {path.name} is neither .toml nor .yaml nor .yml")
    try:
        loaded = parse(path.read_text(encoding="utf-8"))
    except problem as error:
        raise RegistrationError(f"register_kernels: {path}: {error}") from error
    if not isinstance(loaded, Mapping):
        raise RegistrationError(f"register_kernels: {path} holds {type(loaded).__name__}, expected a mapping")
    return loaded


@contextmanager
def use_kernels(config: Mapping[str, Any] | str | Path | None = None, *, inherit: bool = True) -> Iterator[Registry]:
    """Register kernels for the length of a block, in this thread or task only.

    Models kernelized inside keep their kernels afterwards. ``inherit=False`` starts from our own ready kernels alone.

    Examples:
        >>> class Faster(nn.Module):
        ...     def forward(self, x):
        ...         return x
        >>> with amd_ops.use_kernels({"layers": {"MyNorm": {"layer": Faster}}}, inherit=False) as registry:
        ...     type(registry).__name__
        'Registry'
    """
    registry = current_registry().copy() if inherit else Registry()
    if not inherit:
        ready.add_to(registry)
    token = scope(registry)
    try:
        if config is not None:
            register_kernels(config)
        yield current_registry()
    finally:
        unscope(token)


def _entries(config: Mapping[str, Any], section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = config.get(section)
    if entries is None:
        return
    if not isinstance(entries, Mapping):
        raise RegistrationError(f"register_kernels: {section} must be a mapping, found {type(entries).__name__}")
    for name, value in entries.items():
        for entry in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(entry, Mapping):
                raise RegistrationError(
                    f"register_kernels: {section}.{name} must be a mapping, found {type(entry).__name__}"
                )
            yield name, dict(entry)


def _resolved(entry: dict[str, Any], base: Path | None) -> dict[str, Any]:
    if base is not None and isinstance(entry.get("repo_path"), str):
        entry["repo_path"] = base / Path(entry["repo_path"]).expanduser()
    if isinstance(entry.get("func_impl"), str):
        entry["func_impl"] = import_name(entry["func_impl"])
    if isinstance(entry.get("layer"), str):
        entry["layer"] = import_name(entry["layer"])
    return entry


def _register_layer(name: str, entry: dict[str, Any]) -> None:
    external = entry.pop("external_layer", [])
    _check_arguments(f"layers.{name}", entry, register_layer_kernel, {"kernel_name"})
    register_layer_kernel(name, **entry)
    for cls in external if isinstance(external, list | tuple) else [external]:
        register_external_layer(import_name(cls) if isinstance(cls, str) else cls, name)


def _check_arguments(where: str, entry: Mapping[str, Any], register: Callable[..., None], given: set[str]) -> None:
    parameters = inspect.signature(register).parameters
    known = set(parameters) - given
    for key in entry:
        if key not in known:
            raise RegistrationError(f"register_kernels: {where}: {unknown('key', str(key), known)}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in given and key not in entry:
            raise RegistrationError(f"register_kernels: {where}: {key} is missing")


def import_name(name: str) -> Any:
    """Import ``package.module.name`` (or ``package.module:name``). Raises RegistrationError."""
    module_name, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise RegistrationError(f"{name!r} cannot be imported: {error}") from error
    if not hasattr(module, attribute):
        raise RegistrationError(f"module {module_name!r}: {unknown('name', attribute, vars(module))}")
    return getattr(module, attribute)


def _optional(names: tuple[str, ...], missing: str) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise RegistrationError(f"register_kernels: {missing}")
