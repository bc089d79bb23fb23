"""``apply_overlay_kernels_to_<model>()``: our computes put into a transformers model's classes at run time, and a real
way back.

For processes that may not touch files. Where the bundle has an overlay for the installed text, its functions are what
is put in place (curated.py), with one boolean per compute; for any other model the sites that kernelize finds. Models
made before and after are changed alike, since the classes are. Where the installed file is an overlay already, nothing
is done: its toggles decide.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from torch import nn

from ..toggle_rules import SWITCHES
from . import curated, structure
from .binding import Binding, Note
from .conditions import find_device
from .curated_models import CURATED
from .errors import KernelizeError, KernelUnavailable, RegistrationError, unknown
from .layers import kernelize_model, process_rows, unkernelize_model
from .proof import Place
from .report import LayerRow

MODELS = tuple(CURATED)
COMPUTES = tuple(dict.fromkeys((*structure.COMPUTES, *SWITCHES)))
"""Every flag that there is; a model of the bundle has those of its own text."""


@dataclass
class _Patched:
    """What is changed in one model now: the bundle's functions, or the classes that kernelize rewrote."""

    flags: frozenset[str]
    classes: list[tuple[type[nn.Module], Any, Any, Binding]] = field(default_factory=list)
    curated: curated.Patch | None = None

    def told(self) -> list[str]:
        """Return ``"LlamaRMSNorm.forward: rms_norm"`` for everything that was changed."""
        if self.curated is not None:
            return [f"{label}: {', '.join(computes)}" for label, computes in self.curated.computes.items()]
        return [f"{cls.__name__}: {binding.note.kernel.removeprefix(structure.PREFIX)}"
                for cls, _, _, binding in self.classes]  # fmt: skip


_patched: dict[str, _Patched] = {}
_lock = threading.RLock()


def apply_overlay_kernels(model_type: str, *, model: nn.Module | None = None, **computes: bool) -> list[str]:
    """Put our computes into the classes of ``transformers.models.<model_type>``; with ``model``, into that instance
    alone.

    One boolean per compute, True where it is not named. Returns what was changed as ``"LlamaRMSNorm.forward:
    rms_norm"``. Calling it again with the same flags changes nothing, with others it exchanges. Flags stand for
    themselves: no toggle need be set, but projections are packed, and aiter's GEMM is used, only where
    ``USE_FUSED_PROJECTIONS`` and ``USE_AITER_GEMM`` say so. An instance takes the computes that kernelize finds
    (``structure.COMPUTES``). Raises RegistrationError for a model that transformers does not have or a compute that
    does not exist, and KernelUnavailable when not one site was found.

    Examples:
        >>> amd_ops.apply_overlay_kernels("no_such_model")
        Traceback (most recent call last):
        amd_ops.kernelize.errors.RegistrationError: ...
    """
    for name in computes:
        if name not in COMPUTES:
            raise RegistrationError(f"apply_overlay_kernels({model_type!r}): {unknown('compute', name, COMPUTES)}")
    wanted = frozenset(name for name in COMPUTES if computes.get(name, True))
    if model is not None:
        kernelize_model(model, computes=tuple(name for name in structure.COMPUTES if name in wanted))
        return []
    with _lock:
        before = _patched.get(model_type)
        if before is None or before.flags != wanted:
            revert_overlay_kernels(model_type)
            _patched[model_type] = _patch(_module(model_type), wanted)
        return _patched[model_type].told()


def revert_overlay_kernels(model_type: str, *, model: nn.Module | None = None) -> list[str]:
    """Put the functions of the classes back, the very objects; returns their names.

    Raises KernelizeError for one that somebody else replaced since; it is left as it is, the others are restored.

    Examples:
        >>> amd_ops.revert_overlay_kernels("llama")  # nothing was put in
        []
    """
    if model is not None:
        unkernelize_model(model)
        return []
    with _lock:
        patched = _patched.pop(model_type, None)
        if patched is None:
            return []
        if patched.curated is not None:
            foreign = patched.curated.undo()
            restored = [label for label in patched.curated.labels() if label not in foreign]
        else:
            foreign, restored = _restored(patched)
    if foreign:
        raise KernelizeError(
            f"revert_overlay_kernels({model_type!r}): forward was replaced again since in {', '.join(foreign)}"
        )
    return restored


def _restored(patched: _Patched) -> tuple[list[str], list[str]]:
    foreign, restored = [], []
    for cls, original, ours, _ in patched.classes:
        if vars(cls).get("forward") is ours:
            cls.forward = original
            restored.append(cls.__name__)
        else:
            foreign.append(cls.__name__)
    return foreign, restored


def patched_rows() -> list[LayerRow]:
    """Describe the changed classes for kernelize_report(None)."""
    rows = []
    for patched in _patched.values():
        rows += [LayerRow(cls.__module__, cls.__name__, b.note.kernel, b.described, True, tuple(b.partly),
                          dict(b.fallbacks)) for cls, _, _, b in patched.classes]  # fmt: skip
        if patched.curated is not None:
            module, source = patched.curated.module.__name__, "the bundle's overlay of this file"
            rows += [LayerRow(module, label, structure.PREFIX + "+".join(computes), source, True)
                     for label, computes in patched.curated.computes.items()]  # fmt: skip
            rows += [LayerRow(module, reason.partition(":")[0], "", source, False, (reason,))
                     for reason in patched.curated.declined]  # fmt: skip
    return rows


process_rows.append(patched_rows)


def _module(model_type: str) -> ModuleType:
    """Return the modeling module of a model type; ``gemma3_text`` and its like lie in the folder of the whole model."""
    try:
        auto = importlib.import_module("transformers.models.auto.configuration_auto")
        folder = auto.model_type_to_module_name(model_type)
    except ImportError as error:
        raise RegistrationError(f"apply_overlay_kernels({model_type!r}): no transformers: {error}") from error
    name = f"transformers.models.{folder}.modeling_{folder}"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RegistrationError(f"apply_overlay_kernels({model_type!r}): {name} cannot be imported: {error}") from error


def _patch(module: ModuleType, computes: frozenset[str]) -> _Patched:
    text = None if hasattr(module, "__amd_overlay__") else curated.text_for(module)
    if text is not None:
        patch = curated.patch(module, text, computes)
        if not patch.computes:
            patch.undo()
            reasons = patch.declined or ["no compute of this model was asked for"]
            raise KernelUnavailable(f"apply_overlay_kernels: nothing in {module.__name__} can be replaced", reasons)
        return _Patched(computes, curated=patch)
    return _rewritten(module, computes & frozenset(structure.COMPUTES))


def _rewritten(module: ModuleType, computes: frozenset[str]) -> _Patched:
    """Put what kernelize finds in place of the forwards."""
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
    """Make the pair of functions of a curated model, with its computes as their parameters."""
    flags = CURATED[model_type]
    annotated = inspect.Parameter("model", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=nn.Module | None)
    parameters = [
        annotated,
        *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=True, annotation=bool) for name in flags),
    ]
    signature = inspect.Signature(parameters, return_annotation=list[str])

    def apply(*args: Any, **given: Any) -> list[str]:
        bound = signature.bind(*args, **given).arguments
        chosen = {name: bool(bound.get(name, name in flags)) for name in COMPUTES if name in bound or name not in flags}
        return apply_overlay_kernels(model_type, model=bound.get("model"), **chosen)

    def revert(*, model: nn.Module | None = None) -> list[str]:
        return revert_overlay_kernels(model_type, model=model)

    apply.__name__ = apply.__qualname__ = f"apply_overlay_kernels_to_{model_type}"
    apply.__doc__ = _APPLY.format(model=model_type, computes=", ".join(flags))
    vars(apply)["__signature__"] = signature
    revert.__name__ = revert.__qualname__ = f"revert_overlay_kernels_from_{model_type}"
    revert.__doc__ = revert_overlay_kernels.__doc__
    return apply, revert


_APPLY = """Put our computes into the classes of transformers' {model}: {computes}.

    One boolean per compute. ``model`` changes that instance alone. Returns what was changed; see
    ``amd_ops.apply_overlay_kernels``, and revert_overlay_kernels_from_{model}() for the way back.
    """


def names() -> list[str]:
    """Return the names of every curated model's pair of functions."""
    verbs = ("apply_overlay_kernels_to", "revert_overlay_kernels_from")
    return [f"{verb}_{model_type}" for model_type in MODELS for verb in verbs]


def __getattr__(name: str) -> Callable[..., list[str]]:
    """Make ``apply_overlay_kernels_to_<model>`` and ``revert_overlay_kernels_from_<model>`` for the models in
    MODELS.
    """
    for model_type in MODELS:
        if name.endswith(f"_{model_type}"):
            for function in _named(model_type):
                if function.__name__ == name:
                    return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; models: {', '.join(MODELS)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *names()])
