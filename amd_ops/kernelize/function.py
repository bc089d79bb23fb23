"""Function kernels: a function of a Python module is replaced by another, everywhere it is already known, with a way
back.

Names that other modules imported before (``from my_pkg.math_ops import add``) are found and replaced too. References
that have no name - closures, default arguments, partial objects, containers - cannot be replaced and are reported.
"""

from __future__ import annotations

import functools
import gc
import importlib
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from torch import nn

from .conditions import (
    BOTH,
    Mode,
    Present,
    absence,
    check_signature,
    find_device,
    flag,
    infer_device,
    parse_device,
    parse_mode,
)
from .errors import KernelizeError, KernelLoadError, KernelUnavailable, RegistrationError, unknown
from .registry import FunctionKernel, current_registry, register_function_kernel
from .report import FunctionRow
from .selection import choose
from .sources import ObjectSource, as_function

__all__ = ["apply_function_kernel", "register_function_kernel", "restore_function_kernels"]


@dataclass
class Patch:
    """A function that is replaced now: who asked for it and which names were changed."""

    kernel: FunctionKernel
    owner: Any
    attribute: str
    original: Any
    replacement: Any
    names: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    process: bool = False
    models: WeakSet[nn.Module] = field(default_factory=WeakSet)


@dataclass(frozen=True)
class Planned:
    """A function kernel that applies here, ready to be put in place."""

    kernel: FunctionKernel
    owner: Any
    attribute: str
    original: Any
    replacement: Callable[..., Any]


_patches: dict[str, Patch] = {}
_lock = threading.RLock()


def apply_function_kernel(
    target_module: str, device: str | None = None, mode: str | Mode | None = None, strict: bool = False
) -> list[str]:
    """Apply the function kernels that are registered for a module.

    Returns the dotted names that are replaced now. What does not apply (device, mode, a kernel that cannot be loaded, a
    function that the module does not have) is counted in ``kernelize_report(None)``, and with ``strict`` a
    KernelUnavailable that lists every reason and changes nothing. Applying again changes nothing.

    Examples:
        >>> amd_ops.register_function_kernel("silu", "torch.nn.functional", lambda x, inplace=False: x * x.sigmoid())
        >>> amd_ops.apply_function_kernel("torch.nn.functional")
        ['torch.nn.functional.silu']
        >>> amd_ops.restore_function_kernels()
        ['torch.nn.functional.silu']
    """
    registry = current_registry()
    targets = [t for t, kernels in registry.functions.items() if kernels[0].target_module == target_module]
    if not targets:
        known = {kernels[0].target_module for kernels in registry.functions.values()}
        message = (
            f"apply_function_kernel: {unknown('target module', target_module, known)}: no function kernel is registered"
        )
        if strict:
            raise KernelUnavailable(message, [])
        rows.append(FunctionRow(target_module, "", False, message))
        return []
    planned, declined = plan_functions(targets, device, mode, None)
    if strict and declined:
        raise KernelUnavailable(f"apply_function_kernel({target_module!r}) without fallback", map(str, declined))
    rows.extend(declined)
    return [put(step, None) for step in planned]


rows: list[FunctionRow] = []
"""What was asked for process-wide and did not apply; read by kernelize_report."""


def plan_functions(
    targets: list[str] | None, device: str | None, mode: str | Mode | None, model: nn.Module | None
) -> tuple[list[Planned], list[FunctionRow]]:
    """Decide for every target (None: all registered ones) which kernel applies, loading it, without replacing
    anything.
    """
    spec = parse_device(device, None, "function kernels")
    kind = spec.type if spec is not None else infer_device(model)
    wanted = parse_mode(mode, "function kernels")
    found = find_device(kind)
    registry = current_registry()
    planned: list[Planned] = []
    declined: list[FunctionRow] = []
    for target in registry.functions if targets is None else targets:
        kernels = registry.functions[target]
        step = absence(kind) if found is None else _plan(kernels, found, wanted)
        if isinstance(step, Planned):
            planned.append(step)
        else:
            declined.append(FunctionRow(target, str(kernels[-1].source), False, step))
    return planned, declined


def _plan(kernels: list[FunctionKernel], device: Present, mode: Mode | None) -> Planned | str:
    """Return the step for one target, or the reason why there is none."""
    states = BOTH if mode is None or not mode & BOTH else mode & BOTH
    training = Mode.TRAIN in states
    kernel, reason = choose(kernels, device, training=training, compiled=mode is not None and Mode.COMPILE in mode)
    if kernel is None:
        return reason
    try:
        owner, attribute, original = _target(kernel)
        loaded = kernel.source.load()
        replacement = as_function(loaded, str(kernel))
    except (KernelLoadError, RegistrationError) as error:
        return str(error)
    if training and not flag(loaded, "has_backward", True):
        return f"kernel {kernel.source} has no backward"
    if replacement is original:
        return f"kernel {kernel.source} is the function itself"
    check_signature(replacement, original, f"kernel {kernel.source}", kernel.target)
    return Planned(kernel, owner, attribute, original, replacement)


def _target(kernel: FunctionKernel) -> tuple[Any, str, Any]:
    """Import the target module and return (owner, attribute, the original function). Raises RegistrationError."""
    patch = _patches.get(kernel.target)
    if patch is not None:
        return patch.owner, patch.attribute, patch.original
    try:
        owner: Any = importlib.import_module(kernel.target_module)
    except ImportError as error:
        raise RegistrationError(f"{kernel.target}: target module cannot be imported: {error}") from error
    *path, attribute = kernel.func_name.split(".")
    for step in path:
        if not hasattr(owner, step):
            raise RegistrationError(f"{kernel.target}: {unknown('name', step, _names(owner))}")
        owner = getattr(owner, step)
    if not hasattr(owner, attribute):
        raise RegistrationError(f"{kernel.target}: {unknown('function', attribute, _names(owner))}")
    original = vars(owner).get(attribute, getattr(owner, attribute))
    if not callable(original):
        raise RegistrationError(f"{kernel.target} is {type(original).__name__}, not a function")
    return owner, attribute, original


def _names(owner: Any) -> list[str]:
    return [name for name, value in vars(owner).items() if callable(value) and not name.startswith("_")]


def put(step: Planned, model: nn.Module | None) -> str:
    """Replace a function (once) and remember who asked: a model, or the process."""
    with _lock:
        target = step.kernel.target
        patch = _patches.get(target)
        if patch is not None and patch.kernel is not step.kernel:
            _restore(patch)
            patch = None
        if patch is None:
            patch = Patch(step.kernel, step.owner, step.attribute, step.original, step.replacement)
            _replace_names(patch)
            _patches[target] = patch
        if model is None:
            patch.process = True
        else:
            patch.models.add(model)
        return target


def _replace_names(patch: Patch) -> None:
    modules = _module_dicts()
    for referrer in gc.get_referrers(patch.original):
        if isinstance(referrer, dict) and (id(referrer) in modules or "__builtins__" in referrer):
            patch.names += [(referrer, name) for name, value in list(referrer.items()) if value is patch.original]
        elif not isinstance(referrer, types.FrameType) and not _ours(referrer):
            patch.unreached.append(_describe(referrer))
    if isinstance(patch.owner, type):
        patch.unreached.clear()
        setattr(patch.owner, patch.attribute, patch.replacement)
    for namespace, name in patch.names:
        namespace[name] = patch.replacement


def _ours(referrer: Any) -> bool:
    """References of our own bookkeeping, and lists of locals of the search itself."""
    if isinstance(referrer, dict):
        return any(
            vars(step) is referrer
            for step in gc.get_referrers(referrer)
            if isinstance(step, Patch | Planned | ObjectSource)
        )
    return isinstance(referrer, Patch | Planned)


def _describe(referrer: Any) -> str:
    if isinstance(referrer, types.CellType):
        return "a closure"
    if isinstance(referrer, functools.partial):
        return "a functools.partial"
    if isinstance(referrer, types.MethodType):
        return "a bound method"
    if isinstance(referrer, dict):
        holders = [
            h
            for h in gc.get_referrers(referrer)
            if isinstance(h, type) or (hasattr(h, "__dict__") and vars(h) is referrer)
        ]
        return f"attributes of {holders[0]!r}" if holders else "a dict"
    if isinstance(referrer, tuple):
        return "a tuple (default arguments or a container)"
    return f"a {type(referrer).__name__}"


def _module_dicts() -> set[int]:
    return {id(vars(module)) for module in list(sys.modules.values()) if isinstance(module, types.ModuleType)}


def _restore(patch: Patch) -> None:
    """Put the original back under every name, also where the replacement was imported since."""
    if isinstance(patch.owner, type):
        if vars(patch.owner).get(patch.attribute) is not patch.replacement:
            raise KernelizeError(f"{patch.kernel.target} was replaced again since; it is left as it is")
        setattr(patch.owner, patch.attribute, patch.original)
        return
    home = getattr(patch.replacement, "__module__", None)
    modules = _module_dicts()
    foreign = []
    for namespace, name in patch.names:
        if namespace.get(name) is patch.replacement:
            namespace[name] = patch.original
        else:
            foreign.append(f"{namespace.get('__name__')}.{name}")
    for late in gc.get_referrers(patch.replacement):
        if isinstance(late, dict) and id(late) in modules and late.get("__name__") != home:
            for name in [n for n, v in list(late.items()) if v is patch.replacement and n == patch.attribute]:
                late[name] = patch.original
    if foreign:
        raise KernelizeError(
            f"{patch.kernel.target}: replaced again since by someone else, left as it is: {', '.join(foreign)}"
        )


def release(model: nn.Module | None) -> list[str]:
    """Withdraw a model's (None: the process's) request; functions that nobody asks for any more are restored."""
    restored = []
    with _lock:
        for target, patch in list(_patches.items()):
            if model is None:
                patch.process = False
            else:
                patch.models.discard(model)
            if not patch.process and not patch.models:
                del _patches[target]
                _restore(patch)
                restored.append(target)
    return restored


def restore_function_kernels(target_module: str | None = None) -> list[str]:
    """Restore all replaced functions (of one module), whoever asked for them; returns their dotted names.

    Examples:
        >>> amd_ops.restore_function_kernels("torch.nn.functional")  # nothing is replaced
        []
    """
    restored = []
    with _lock:
        for target, patch in list(_patches.items()):
            if target_module in (None, patch.kernel.target_module):
                del _patches[target]
                _restore(patch)
                restored.append(target)
    return restored


def applied_rows(model: nn.Module | None) -> list[FunctionRow]:
    """Describe the functions that are replaced now; with a model, only those it asked for."""
    with _lock:
        return [
            FunctionRow(target, str(p.kernel.source), True, "", len(p.names), tuple(p.unreached))
            for target, p in _patches.items()
            if model is None or model in p.models
        ]
