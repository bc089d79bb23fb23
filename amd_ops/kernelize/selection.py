"""Which of the implementations of a kernel serves a class on this machine, and why the others do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from . import conditions
from .conditions import BOTH, Mode, Present, closeness, mismatch, mode_name, serves
from .errors import KernelLoadError
from .registry import FunctionKernel, LayerKernel

Kernel = TypeVar("Kernel", LayerKernel, FunctionKernel)
_loaded: WeakKeyDictionary[LayerKernel, type[nn.Module]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Slot:
    """The kernel that serves one state (training or inference) of a class; without one, ``reason`` says why."""

    kernel: LayerKernel | None = None
    layer: type[nn.Module] | None = None
    reason: str = ""


@dataclass
class Slots:
    """Both states of a class. A request for training only lets the training kernel serve inference too."""

    train: Slot = field(default_factory=Slot)
    infer: Slot = field(default_factory=Slot)

    @property
    def reasons(self) -> list[str]:
        """Why a state that was asked for has no kernel."""
        return list(
            dict.fromkeys(slot.reason for slot in (self.train, self.infer) if slot.kernel is None and slot.reason)
        )

    @property
    def any(self) -> bool:
        return self.train.kernel is not None or self.infer.kernel is not None


def choose(kernels: Sequence[Kernel], device: Present, *, training: bool, compiled: bool) -> tuple[Kernel | None, str]:
    """Return the best kernel for a state, or None with the reasons of all. Of equals the latest registration wins."""
    best: tuple[tuple[int, int], Kernel] | None = None
    reasons = []
    for kernel in reversed(kernels):
        wrong = mismatch(kernel.device, device)
        if wrong is not None:
            reasons.append(wrong)
            continue
        rank = serves(kernel.mode, training=training, compiled=compiled)
        if rank is None:
            state = ("training" if training else "inference") + (" under torch.compile" if compiled else "")
            reasons.append(f"kernel is for mode {mode_name(kernel.mode)}, needed for {state}")
            continue
        order = (closeness(kernel.device, device), rank)
        if best is None or order < best[0]:
            best = (order, kernel)
    return (best[1], "") if best is not None else (None, "; ".join(dict.fromkeys(reasons)) or "no kernel is registered")


def load_layer(kernel: LayerKernel, cls: type[nn.Module]) -> type[nn.Module]:
    """Load a kernel's class (once) and check it against the class it replaces. Raises KernelLoadError or
    SignatureError.
    """
    what = f"{kernel.name} from {kernel.source}"
    layer = _loaded.get(kernel)
    if layer is None:
        layer = _loaded[kernel] = conditions.check_stateless(kernel.source.load(), what)
    conditions.check_layer(layer, cls, what)
    return layer


def select(kernels: Sequence[LayerKernel], cls: type[nn.Module], device: Present, mode: Mode | None) -> Slots:
    """Fill the slots of a class for a requested mode (None: training and inference, switched at call time).

    A kernel that cannot be loaded leaves its slot empty with the reason. A kernel with a wrong signature is a
    SignatureError whatever the fallback: it is a mistake in the program, not a property of the machine.
    """
    compiled = mode is not None and Mode.COMPILE in mode
    states = BOTH if mode is None or not mode & BOTH else mode & BOTH
    slots = Slots()
    if Mode.TRAIN in states:
        slots.train = _slot(kernels, cls, device, training=True, compiled=compiled)
        slots.infer = slots.train
    else:
        slots.train = Slot(reason="")
    if Mode.INFERENCE in states:
        slots.infer = _slot(kernels, cls, device, training=False, compiled=compiled)
    return slots


def _slot(
    kernels: Sequence[LayerKernel], cls: type[nn.Module], device: Present, *, training: bool, compiled: bool
) -> Slot:
    kernel, reason = choose(kernels, device, training=training, compiled=compiled)
    if kernel is None:
        return Slot(reason=reason)
    try:
        layer = load_layer(kernel, cls)
    except KernelLoadError as error:
        return Slot(reason=str(error))
    if training and not conditions.flag(layer, "has_backward", True):
        return Slot(reason=f"kernel {kernel.name} has no backward")
    registered = kernel.mode is not None and Mode.COMPILE in kernel.mode
    if compiled and not conditions.flag(layer, "can_torch_compile", registered):
        return Slot(reason=f"kernel {kernel.name} cannot be compiled")
    return Slot(kernel, layer)
