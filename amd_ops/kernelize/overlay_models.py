"""``apply_overlay_kernels_to_<model>()``: our computes put into a transformers model's classes at run time, and a real
way back.

For processes that may not touch files. The sites are those that kernelize finds in any model; nothing here is written
per model. Models made before and after are changed alike, since the classes are. Where the installed file is an
overlay already, nothing is done: its toggles decide.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn

from . import structure
from .binding import Binding, Note
from .devices import find_device
from .errors import KernelizeError, KernelUnavailable, RegistrationError
from .layers import kernelize_model, process_rows, unkernelize_model
from .proof import Place
from .report import LayerRow

MODELS = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "olmo2",
    "granite",
    "smollm3",
    "ministral",
    "exaone4",
    "helium",
    "seed_oss",
    "arcee",
    "deepseek_v3",
)


@dataclass
class _Patched:
    """The classes of one model that are changed now: (class, its own forward, ours, its counters)."""

    flags: frozenset[str]
    classes: list[tuple[type[nn.Module], Any, Any, Binding]] = field(default_factory=list)


_patched: dict[str, _Patched] = {}
_lock = threading.RLock()


def apply_overlay_kernels(
    model_type: str,
    *,
    model: nn.Module | None = None,
    rms_norm: bool = True,
    activation: bool = True,
    gated_mlp: bool = True,
    qkv: bool = True,
    rope: bool = True,
    attention: bool = True,
) -> list[str]:
    """Put our computes into the classes of ``transformers.models.<model_type>``; with ``model``, into that instance
    alone.

    One flag per compute. Returns what was changed as ``"LlamaRMSNorm: rms_norm"``. Calling it again with the same flags
    changes nothing, with others it exchanges. Raises RegistrationError for a model that transformers does not have, and
    KernelUnavailable when not one site was found.
    """
    flags = {
        "rms_norm": rms_norm,
        "activation": activation,
        "gated_mlp": gated_mlp,
        "qkv": qkv,
        "rope": rope,
        "attention": attention,
    }
    wanted = frozenset(name for name, on in flags.items() if on)
    if model is not None:
        kernelize_model(model, computes=tuple(wanted))
        return []
    with _lock:
        before = _patched.get(model_type)
        if before is None or before.flags != wanted:
            revert_overlay_kernels(model_type)
            _patched[model_type] = _patch(_module(model_type), wanted)
        return [
            f"{cls.__name__}: {binding.note.kernel.removeprefix(structure.PREFIX)}"
            for cls, _, _, binding in _patched[model_type].classes
        ]


def revert_overlay_kernels(model_type: str, *, model: nn.Module | None = None) -> list[str]:
    """Put the classes' own forwards back, the very objects; returns the names of the classes.

    Raises KernelizeError for a class whose forward somebody else replaced since; it is left as it is, the others are
    restored.
    """
    if model is not None:
        unkernelize_model(model)
        return []
    with _lock:
        patched = _patched.pop(model_type, None)
        foreign = []
        restored = []
        for cls, original, ours, _ in patched.classes if patched is not None else []:
            if vars(cls).get("forward") is ours:
                cls.forward = original
                restored.append(cls.__name__)
            else:
                foreign.append(cls.__name__)
    if foreign:
        raise KernelizeError(
            f"revert_overlay_kernels({model_type!r}): forward was replaced again since in {', '.join(foreign)}"
        )
    return restored


def patched_rows() -> list[LayerRow]:
    """Describe the changed classes for kernelize_report(None)."""
    return [
        LayerRow(cls.__module__, cls.__name__, b.note.kernel, b.described, True, tuple(b.partly), dict(b.fallbacks))
        for patched in _patched.values()
        for cls, _, _, b in patched.classes
    ]


process_rows.append(patched_rows)


def _module(model_type: str) -> ModuleType:
    name = f"transformers.models.{model_type}.modeling_{model_type}"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RegistrationError(f"apply_overlay_kernels({model_type!r}): {name} cannot be imported: {error}") from error


def _patch(module: ModuleType, computes: frozenset[str]) -> _Patched:
    amd = find_device("rocm")
    tensors = amd.tensors if amd is not None else "cpu"
    patched = _Patched(computes)
    reasons = []
    for cls in list(vars(module).values()):
        if (
            not isinstance(cls, type)
            or not issubclass(cls, nn.Module)
            or cls.__module__ != module.__name__
            or "forward" not in vars(cls)
        ):
            continue
        found = structure.rewritten(cls, computes)
        if found is None:
            continue
        if found.make is None:
            reasons += [f"{cls.__name__}: {reason}" for reason in found.declined]
            continue
        note = Note(structure.PREFIX + "+".join(found.computes), "any", "rocm" if amd is not None else "cpu", False)
        binding = Binding(cls, note, (), tensors, found.source, list(found.declined))
        ours = found.make(Place(tensors, binding.miss))
        patched.classes.append((cls, vars(cls)["forward"], ours, binding))
    if not patched.classes:
        raise KernelUnavailable(
            f"apply_overlay_kernels: nothing in {module.__name__} can be replaced", reasons or ["no site was found"]
        )
    for cls, _, ours, _ in patched.classes:
        cls.forward = ours
    return patched


def _named(model_type: str) -> tuple[Callable[..., list[str]], Callable[..., list[str]]]:
    def apply(**flags: Any) -> list[str]:
        return apply_overlay_kernels(model_type, **flags)

    def revert(**arguments: Any) -> list[str]:
        return revert_overlay_kernels(model_type, **arguments)

    apply.__name__ = apply.__qualname__ = f"apply_overlay_kernels_to_{model_type}"
    apply.__doc__ = apply_overlay_kernels.__doc__
    revert.__name__ = revert.__qualname__ = f"revert_overlay_kernels_from_{model_type}"
    revert.__doc__ = revert_overlay_kernels.__doc__
    return apply, revert


def __getattr__(name: str) -> Callable[..., list[str]]:
    """Make ``apply_overlay_kernels_to_<model>`` and ``revert_overlay_kernels_from_<model>`` for the models in
    MODELS.
    """
    for model_type in MODELS:
        for function in _named(model_type):
            if function.__name__ == name:
                return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; models: {', '.join(MODELS)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *(function.__name__ for model_type in MODELS for function in _named(model_type))])
