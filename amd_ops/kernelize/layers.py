"""Kernelizing a model: decide for every class first, then change every module; and the way back."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from torch import nn

from .. import toggles
from ..dispatch import DeclinedWarning
from . import conditions, function, ready, structure
from .binding import Binding, Note, bind, binding_of, make_class, obstacle, parked, unbind
from .conditions import Mode, Present, absence, find_device, infer_device, mode_name, parse_device, parse_mode
from .errors import KernelizeError, KernelUnavailable
from .forwards import Branch, Home, build
from .proof import Place
from .registry import Registry, current_registry
from .report import FunctionRow, KernelizeReport, LayerRow
from .selection import Slot, select

Change = tuple[nn.Module, "type[nn.Module] | None"]


@dataclass(frozen=True)
class Request:
    """What kernelize_model was asked for, parsed. ``device`` is None when the machine has no such device."""

    kind: str
    device: Present | None
    mode: Mode | None
    strict: bool
    computes: frozenset[str]


@dataclass
class Decision:
    """What happens to one class: a kernelized class, or None, and the reasons for what stays as it is."""

    kernel: str
    source: str
    kernelized: type[nn.Module] | None
    reasons: tuple[str, ...]
    key: tuple[Any, ...] = ()


@dataclass
class _Record:
    """What kernelize_report knows beyond the modules themselves."""

    declined: dict[str, LayerRow] = field(default_factory=dict)
    functions: list[FunctionRow] = field(default_factory=list)
    unused: tuple[str, ...] = ()


_records: WeakKeyDictionary[nn.Module, _Record] = WeakKeyDictionary()
_process = _Record()
_from_notes: WeakValueDictionary[tuple[Any, ...], type[nn.Module]] = WeakValueDictionary()
_lock = threading.RLock()
process_rows: list[Callable[[], list[LayerRow]]] = []
"""Others who change classes for the whole process add a description of what they changed."""


def kernelize_model(
    model: nn.Module | None,
    mode: str | Mode | None = None,
    device: str | None = None,
    use_fallback: bool = True,
    *,
    computes: bool | tuple[str, ...] | list[str] = True,
) -> nn.Module | None:
    """Replace the layers of a model, and the functions of modules, by the kernels registered for them. Returns the
    model.

    ``mode``: ``"train"``, ``"inference"``, with ``"+compile"`` when the model will be compiled; None serves both and
    switches at call time with ``model.train()`` and ``model.eval()``. ``device``: ``"cuda"``, ``"rocm"``, ``"cpu"``;
    None asks the model. ``computes``: which of our own computes (``rms_norm``, ``gated_mlp``, ``qkv``, ``rope``,
    ``attention``, ``activation``) are looked for by structure in classes that no kernel is bound to; True means all,
    False none.

    What does not apply is left alone, counted, and shown by ``kernelize_report(model)``. With ``use_fallback=False``
    (or AMD_OPS_STRICT=1) it is a KernelUnavailable that lists everything, before anything is changed, and a call that
    a guard declines is an error. Kernelizing again with the same kernels changes nothing; with others it exchanges
    them.

    Raises RegistrationError for a bad mode or device, SignatureError for a kernel that does not fit its layer.

    Examples:
        >>> class Norm(nn.Module):
        ...     def forward(self, x):
        ...         return x / x.norm()
        >>> class Faster(nn.Module):
        ...     def forward(self, x):
        ...         return x * x.square().sum().rsqrt()
        >>> with amd_ops.use_kernels({"layers": {"Norm": {"layer": Faster, "external_layer": Norm}}}):
        ...     type(amd_ops.kernelize_model(Norm())) is Norm
        False
    """
    request = _request(model, mode, device, use_fallback, computes)
    with _lock:
        wanted, rows = _decide(model, request)
        planned, functions = function.plan_functions(None, request.kind, request.mode, model)
        if request.strict:
            # A class that only looks like one of ours and was declined is no broken request.
            broken = [row for row in rows.values() if not row.kernel.startswith(structure.PREFIX)]
            issues = [
                f"{row.module or '(root)'} ({row.cls}), kernel {row.kernel!r}: {'; '.join(row.reasons)}"
                for row in broken
            ]
            issues += [str(row) for row in functions]
            if issues:
                raise KernelUnavailable("kernelize_model without fallback: these kernels do not apply", issues)
        _exchange(wanted)
        for step in planned:
            function.put(step, model)
        record = _process if model is None else _records.setdefault(model, _Record())
        record.declined, record.functions = rows, functions
        record.unused = _unused(model, current_registry())
    return model


def unkernelize_model(model: nn.Module | None) -> nn.Module | None:
    """Give every module of a model its own class back, and functions that nobody else asked for theirs. Returns the
    model.

    ``None`` withdraws what was applied for the process. A model that was not kernelized stays as it is. Raises
    KernelizeError when another tool replaced a class or a function since; what can be restored is restored first.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> amd_ops.unkernelize_model(amd_ops.kernelize_model(model)) is model
        True
    """
    problems = []
    with _lock:
        for name, module in [] if model is None else list(model.named_modules()):
            try:
                unbind(module)
            except KernelizeError as error:
                problems.append(f"{name}: {error}")
        try:
            function.release(model)
        except KernelizeError as error:
            problems.append(str(error))
        if model is not None:
            _records.pop(model, None)
        else:
            _process.declined, _process.functions, _process.unused = {}, [], ()
            function.rows.clear()
    if problems:
        raise KernelizeError("unkernelize_model: " + "; ".join(problems))
    return model


@contextmanager
def kernelized(
    model: nn.Module | None,
    mode: str | Mode | None = None,
    device: str | None = None,
    use_fallback: bool = True,
    *,
    computes: bool | tuple[str, ...] | list[str] = True,
) -> Iterator[nn.Module | None]:
    """Kernelize for the length of a block. Modules that were kernelized before get their former kernels back.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> with amd_ops.kernelized(model, mode="inference"):
        ...     model(torch.ones(1, 2)).shape
        torch.Size([1, 2])
    """
    before = [] if model is None else [(module, type(module)) for module in model.modules() if binding_of(module)]
    kernelize_model(model, mode, device, use_fallback, computes=computes)
    try:
        yield model
    finally:
        unkernelize_model(model)
        for module, cls in before:
            bind(module, cls)


def kernelize_report(model: nn.Module | None = None) -> KernelizeReport:
    """Say which modules and functions are kernelized now and why the others are not; None reports what is
    process-wide.

    Examples:
        >>> print(amd_ops.kernelize_report(nn.Linear(2, 2)))
        kernelize: 0 of 0 candidate layers, 0 of 0 functions
    """
    record = _process if model is None else _records.get(model, _Record())
    rows = []
    for name, module in [] if model is None else model.named_modules():
        binding = binding_of(module)
        if binding is not None:
            reasons = tuple(binding.partly) + ((parked(module),) if parked(module) else ())
            rows.append(
                LayerRow(
                    name,
                    binding.original.__name__,
                    binding.note.kernel,
                    binding.described,
                    True,
                    reasons,
                    dict(binding.fallbacks),
                )
            )
        elif name in record.declined:
            rows.append(record.declined[name])
    if model is None:
        rows += [row for describe in process_rows for row in describe()]
    functions = [*function.applied_rows(model), *record.functions, *(function.rows if model is None else [])]
    return KernelizeReport(tuple(rows), tuple(functions), record.unused)


def class_for_note(original: type[nn.Module], note: Note) -> tuple[type[nn.Module] | None, str]:
    """Find the kernelized class that a pickle asks for, in this process's registry; None with the reason."""
    named = note.kernel.startswith(structure.PREFIX)
    computes = frozenset(note.kernel.removeprefix(structure.PREFIX).split("+") if named else ())
    found = find_device(note.device)
    if found is None:
        return None, absence(note.device)
    request = Request(
        note.device, found, parse_mode(None if note.mode == "any" else note.mode, "pickle"), note.strict, computes
    )
    decision = _decide_class(original, request, current_registry())
    if decision is None or decision.kernel != note.kernel:
        return None, "it is not registered for this class in this process"
    if decision.kernelized is None:
        return None, "; ".join(decision.reasons)
    known = _from_notes.setdefault((original, decision.key), decision.kernelized)
    return known, ""


def rebuild(original: type[nn.Module], arguments: tuple[Any, ...], note: Note) -> nn.Module:
    """Make the object that a pickle describes, kernelized again when this process knows the kernel."""
    made: nn.Module = original.__new__(original, *arguments)
    kernelized, reason = class_for_note(original, note)
    if kernelized is None:
        asks = f"kernelize: a pickled {original.__name__} asks for kernel {note.kernel!r}"
        text = f"{asks}: {reason}; it keeps its original forward"
        warnings.warn(text, DeclinedWarning, stacklevel=2)
    else:
        bind(made, kernelized)
    return made


def forget() -> None:
    """Drop what is remembered beside the modules: reports of models and classes made for pickles."""
    _records.clear()
    _from_notes.clear()
    _process.declined, _process.functions, _process.unused = {}, [], ()


def _request(model: nn.Module | None, mode: Any, device: Any, use_fallback: bool, computes: Any) -> Request:
    spec = parse_device(device, None, "kernelize_model")
    kind = spec.type if spec is not None else infer_device(model)
    found = find_device(kind)
    names = structure.COMPUTES if computes is True else tuple(computes or ())
    structure.check_computes(names)
    strict = not use_fallback or toggles.settings().strict
    return Request(kind, found, parse_mode(mode, "kernelize_model"), strict, frozenset(names))


def _decide(model: nn.Module | None, request: Request) -> tuple[list[Change], dict[str, LayerRow]]:
    """Return what every module becomes (None: its original class), and a row for every request that is not met."""
    wanted: list[Change] = []
    rows: dict[str, LayerRow] = {}
    decisions: dict[type[nn.Module], Decision | None] = {}
    registry = current_registry()
    for name, module in [] if model is None else model.named_modules():
        binding = binding_of(module)
        cls = binding.original if binding is not None else type(module)
        if cls not in decisions:
            decisions[cls] = _decide_class(cls, request, registry)
        decision = decisions[cls]
        if decision is None:
            wanted.append((module, None))
            continue
        reasons = decision.reasons
        blocked = obstacle(module) if decision.kernelized is not None else None
        if blocked is not None:
            reasons = (blocked,)
        if decision.kernelized is None or blocked is not None:
            wanted.append((module, None))
            rows[name] = LayerRow(name, cls.__name__, decision.kernel, decision.source, False, reasons)
        elif binding is None or binding.key != decision.key:
            wanted.append((module, decision.kernelized))
            if request.strict and decision.reasons:
                rows[name] = LayerRow(name, cls.__name__, decision.kernel, decision.source, True, reasons)
    return wanted, rows


def _decide_class(cls: type[nn.Module], request: Request, registry: Registry) -> Decision | None:
    name, refusal = _kernel_name(cls, registry)
    if name is not None:
        return _registered(cls, name, refusal, request, registry)
    if not request.computes:
        return None
    return _structural(cls, request)


def _kernel_name(cls: type[nn.Module], registry: Registry) -> tuple[str | None, str]:
    """Find the kernel bound to a class or to the base class whose forward it keeps; a reason when it overrides that
    forward.
    """
    for base in cls.__mro__:
        if not issubclass(base, nn.Module):
            continue
        name = registry.classes.get(base)
        if name is None:
            # Classes that are decorated for the kernels library carry their kernel's name.
            declared = vars(base).get("kernel_layer_name")
            name = declared if declared in registry.layers else None
        if name is not None:
            same = cls.forward is base.forward
            refusal = f"{cls.__name__} has a forward of its own, kernel {name!r} is bound to {base.__name__}"
            return name, "" if same else refusal
    return None, ""


def _registered(cls: type[nn.Module], name: str, refusal: str, request: Request, registry: Registry) -> Decision:
    kernels = registry.layers[name]
    source = str(kernels[-1].source)
    if refusal:
        return Decision(name, source, None, (refusal,))
    if request.device is None:
        return Decision(name, source, None, (absence(request.kind),))
    slots = select(kernels, cls, request.device, request.mode)
    if not slots.any:
        return Decision(name, source, None, tuple(slots.reasons))
    chosen = [s.kernel for s in (slots.train, slots.infer) if s.kernel is not None]
    described = " | ".join(dict.fromkeys(str(kernel.source) for kernel in chosen))
    key = (name, slots.train.kernel, slots.infer.kernel, request.device, request.mode, request.strict)
    note = Note(name, mode_name(request.mode), request.kind, request.strict)
    binding = Binding(cls, note, key, request.device.tensors, described, slots.reasons)
    forward = build(Home(cls), _branch(slots.train), _branch(slots.infer), binding.miss)
    return Decision(name, described, make_class(binding, forward, rebuild), tuple(slots.reasons), key)


def _branch(slot: Slot) -> Branch:
    if slot.kernel is None or slot.layer is None:
        return Branch(None, reason=slot.reason)
    return Branch(slot.layer.forward, slot.kernel.guard, conditions.flag(slot.layer, "has_backward", True))


def _structural(cls: type[nn.Module], request: Request) -> Decision | None:
    """Look for our own computes in a class that no kernel is bound to."""
    found = structure.rewritten(cls, request.computes)
    if found is None:
        return None
    kernel = structure.PREFIX + "+".join(found.computes or ("none",))
    if request.device is None:
        return Decision(kernel, found.source, None, (absence(request.kind),))
    if found.make is None:
        return Decision(kernel, found.source, None, found.declined)
    note = Note(kernel, mode_name(request.mode), request.kind, request.strict)
    key = (kernel, request.device, request.mode, request.strict)
    binding = Binding(cls, note, key, request.device.tensors, found.source, list(found.declined))
    forward = found.make(Place(request.device.tensors, binding.miss))
    return Decision(kernel, found.source, make_class(binding, forward, rebuild), (), key)


def _exchange(wanted: list[Change]) -> None:
    """Change all modules, or none: an error or Ctrl-C on the way puts back what was changed."""
    done: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for module, kernelized_class in wanted:
            done.append((module, type(module)))
            if kernelized_class is None:
                unbind(module)
            else:
                bind(module, kernelized_class)
    except BaseException:
        for module, cls in done:
            if type(module) is not cls:
                bind(module, cls)
        raise


def _unused(model: nn.Module | None, registry: Registry) -> tuple[str, ...]:
    """Registered layer kernels that no class of the model is bound to."""
    if model is None:
        return ()
    bindings = [(module, binding_of(module)) for module in model.modules()]
    used = {_kernel_name(type(m) if b is None else b.original, registry)[0] for m, b in bindings}
    return tuple(name for name in registry.layers if name not in used and not name.startswith(ready.NAMESPACE))


__all__ = ["kernelize_model", "kernelize_report", "kernelized", "unkernelize_model"]
