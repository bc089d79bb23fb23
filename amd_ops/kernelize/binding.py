"""Putting a kernel into one module: its ``__class__`` becomes a private subclass whose only difference is ``forward``.

A subclass, not an instance attribute: nothing is added to the module, so state_dict, hooks and every attribute stay
what they were, ``isinstance`` holds, and copying and pickling have one place to be right in. A pickle names the
kernel and never holds code: it is looked up in the registry of the process that loads it.
"""

from __future__ import annotations

import copyreg
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..dispatch import DeclinedError, DeclinedWarning
from ..modules import defined_by_its_class
from .errors import KernelizeError
from .forwards import OURS, Branch, Forward, Home, build

MAX_REASONS = 100
_MARK = "__amd_kernel__"


@dataclass(frozen=True)
class Note:
    """What a pickle remembers of a binding: names only."""

    kernel: str
    mode: str
    device: str
    strict: bool


Rebuild = Callable[["type[nn.Module]", "tuple[Any, ...]", Note], nn.Module]
"""What a pickle calls: the original class, the arguments of its ``__new__``, the note."""


@dataclass
class Binding:
    """One kernelized class: the original, the kernel that stands in for it, and how often calls went back to the
    original.

    ``partly`` are the reasons why one state or one compute of the class has no kernel.
    """

    original: type[nn.Module]
    note: Note
    key: tuple[Any, ...]
    tensors: str
    described: str
    partly: list[str] = field(default_factory=list)
    fallbacks: dict[str, int] = field(default_factory=dict)
    active: type[nn.Module] | None = None
    rebuild: Rebuild | None = None
    _parked: type[nn.Module] | None = None

    @property
    def parked(self) -> type[nn.Module]:
        """The class of modules that were moved off the device their kernel is for: the original forward, counted."""
        if self._parked is None:
            reason = f"the module was moved off {self.tensors}, which its kernel was bound for"
            away = Branch(None, reason=reason)
            self._parked = _derive(self, build(Home(self.original), away, away, self.miss))
        return self._parked

    def miss(self, reason: str) -> None:
        """Count a call that the kernel declined; the first of each reason is warned about; without fallback it is an
        error.

        Calls inside a compiled graph are not counted: the decision was made when the graph was traced.
        """
        if torch.compiler.is_compiling():
            return
        if reason not in self.fallbacks and len(self.fallbacks) >= MAX_REASONS:
            reason = "other reasons (the list is full)"
        known = self.fallbacks.get(reason, 0)
        self.fallbacks[reason] = known + 1
        text = f"kernelize: {self.original.__name__}: kernel {self.note.kernel!r} declined a call: {reason}"
        if self.note.strict:
            raise DeclinedError(f"{text} (no fallback was allowed)")
        if not known:
            warnings.warn(f"{text}. The original forward runs instead.", DeclinedWarning, stacklevel=4)


def make_class(binding: Binding, forward: Forward, rebuild: Rebuild) -> type[nn.Module]:
    """Make the subclass of ``binding.original`` that runs ``forward``; its pickles are loaded by ``rebuild``."""
    binding.rebuild = rebuild
    binding.active = _derive(binding, forward)
    return binding.active


def _derive(binding: Binding, forward: Forward) -> type[nn.Module]:
    original = binding.original
    space = {
        "forward": forward,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": _reduce_ex,
        "__deepcopy__": _deepcopy,
        "__copy__": _copy,
        "_apply": _apply,
        _MARK: binding,
    }
    # type(original), not type: a metaclass of the model's own must stay.
    metaclass: Any = type(original)
    made: type[nn.Module] = metaclass(original.__name__, (original,), space)
    return made


def binding_of(module: nn.Module) -> Binding | None:
    """Return the binding of a kernelized module, None for any other."""
    found: Binding | None = vars(type(module)).get(_MARK)
    return found


def forward_was_replaced(cls: type[nn.Module]) -> bool:
    """Return True when a class runs neither what its body defined nor what kernelize made for it."""
    owner = next(one for one in cls.__mro__ if "forward" in vars(one))
    forward = vars(owner)["forward"]
    if forward not in OURS:
        return not defined_by_its_class(forward, owner)
    binding: Binding | None = vars(owner).get(_MARK)
    return binding is not None and forward_was_replaced(binding.original)


def bind(module: nn.Module, kernelized: type[nn.Module]) -> None:
    """Make a module an instance of the kernelized class."""
    # Not module.__class__ = ...: a model may define __setattr__.
    object.__setattr__(module, "__class__", kernelized)


def unbind(module: nn.Module) -> bool:
    """Give a module its class back; False when it was not kernelized.

    Raises KernelizeError when another tool made a subclass of the kernelized class since (FSDP2, parametrize).
    """
    binding = binding_of(module)
    if binding is not None:
        object.__setattr__(module, "__class__", binding.original)
        return True
    covered = getattr(type(module), _MARK, None)
    if covered is not None:
        raise KernelizeError(
            f"{type(module).__name__}: its class was replaced again after kernelize (by FSDP, parametrize or the "
            "like); undo that first, then unkernelize"
        )
    return False


def parked(module: nn.Module) -> str:
    """Return the reason when a kernelized module sits on another device than its kernel is for, else ""."""
    binding = binding_of(module)
    away = binding is not None and type(module) is not binding.active
    return f"the module was moved off {binding.tensors}" if binding is not None and away else ""


def obstacle(module: nn.Module) -> str | None:
    """Return why a module's forward may not be replaced, or None."""
    if "forward" in vars(module):
        return "the module has a forward of its own (a hook of accelerate or another replacement)"
    if isinstance(module, torch.jit.ScriptModule):
        return "the module is a TorchScript module"
    return None


def _apply(self: nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> nn.Module:
    """Follow ``.to()``, ``.cuda()`` and ``.cpu()``: a check of the device at every call would cost more than the rest.

    Modules without tensors of their own go where ``fn`` sends an empty one.
    """
    inherited: Any = getattr(super(_kernelized(self), self), "_apply")  # noqa: B009 - mypy knows no private names
    inherited(fn, *args, **kwargs)
    binding = _covering(self)
    tensor: torch.Tensor | None = next(self.parameters(), None)
    if tensor is None:
        tensor = next(self.buffers(), None)
    device = (fn(torch.empty(0, device=binding.tensors)) if tensor is None else tensor).device.type
    home = binding.active if device == binding.tensors else None
    if device != "meta" and type(self) in (binding.active, binding._parked) and type(self) is not home:
        bind(self, home or binding.parked)
    return self


def _reduce_ex(self: nn.Module, protocol: Any) -> Any:
    """Pickle as the original class, with a note that asks for the kernel again."""
    binding = _covering(self)
    parts = super(_kernelized(self), self).__reduce_ex__(protocol)
    maker = copyreg.__newobj__  # type: ignore[attr-defined]
    if isinstance(parts, tuple) and parts[0] is maker and parts[1][0] is type(self):
        return (binding.rebuild, (binding.original, parts[1][1:], binding.note), *parts[2:])
    return parts


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> Any:
    """Copy within the process: the copy has the same kernel and the same counters."""
    inherited = getattr(super(_kernelized(self), self), "__deepcopy__", None)
    return inherited(memo) if inherited is not None else _duplicate(self, lambda state: deepcopy(state, memo), memo)


def _copy(self: nn.Module) -> Any:
    inherited = getattr(super(_kernelized(self), self), "__copy__", None)
    return inherited() if inherited is not None else _duplicate(self, dict, {})


def _duplicate(module: nn.Module, take: Callable[[Any], Any], memo: dict[int, Any]) -> Any:
    parts: Any = super(_kernelized(module), module).__reduce_ex__(4)
    maker, arguments, state = parts[:3]
    made = maker(*arguments)
    memo[id(module)] = made
    made.__setstate__(take(state))
    return made


def _kernelized(module: nn.Module) -> type[nn.Module]:
    return next(cls for cls in type(module).__mro__ if _MARK in vars(cls))


def _covering(module: nn.Module) -> Binding:
    binding: Binding = vars(_kernelized(module))[_MARK]
    return binding
