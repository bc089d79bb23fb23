"""When a kernel may run: on which device, in which mode of a model, and whether it can stand in for that layer.

torch calls an AMD GPU ``cuda``. So on a HIP build of torch a request for ``cuda`` means the AMD GPU: kernels
registered for ``rocm`` are taken first, then those registered for ``cuda``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Flag, auto
from fnmatch import fnmatchcase
from inspect import Parameter
from typing import Any

import torch
from torch import nn

from .. import device as amd
from .errors import RegistrationError, SignatureError

TYPES = ("cuda", "rocm", "cpu")
_ARCH = re.compile(r"gfx[0-9a-f*?\[\]!-]*\Z")


@dataclass(frozen=True)
class DeviceSpec:
    """A device condition: type, and for rocm the arch patterns (``gfx942``, ``gfx94*``) it is limited to."""

    type: str
    arch: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.type}:{','.join(self.arch)}" if self.arch else self.type


@dataclass(frozen=True)
class Present:
    """A device that this machine really has: ``arch`` is empty off ROCm; ``tensors`` is where its tensors live in
    torch's words.
    """

    type: str
    arch: str
    tensors: str


def parse_device(device: str | DeviceSpec | None, arch: str | Iterable[str] | None, where: str) -> DeviceSpec | None:
    """Parse ``"cuda"``, ``"rocm"``, ``"rocm:gfx942,gfx950"`` plus an optional ``arch`` list; None means any device."""
    patterns = (arch,) if isinstance(arch, str) else tuple(arch or ())
    if isinstance(device, DeviceSpec):
        patterns = (*device.arch, *patterns)
        device = device.type
    if device is None:
        if patterns:
            raise RegistrationError(f"{where}: arch {', '.join(patterns)} needs device='rocm'")
        return None
    if not isinstance(device, str):
        raise RegistrationError(f"{where}: device must be a string, found {type(device).__name__}")
    kind, _, tail = device.partition(":")
    if tail and not tail.isdigit():
        patterns = (*(part.strip() for part in tail.split(",")), *patterns)
    if kind not in TYPES:
        raise RegistrationError(f"{where}: unknown device {device!r}; use one of {', '.join(TYPES)}, or rocm:gfx942")
    for pattern in patterns:
        if kind != "rocm" or not _ARCH.match(pattern):
            raise RegistrationError(
                f"{where}: {pattern!r} is no condition on {kind}; write it as rocm:gfx942 or rocm:gfx94*"
            )
    return DeviceSpec(kind, patterns)


def _amd() -> Present | None:
    found = amd.current()
    return None if found is None else Present("rocm", found.arch, found.type)


def find_device(kind: str) -> Present | None:
    """Return the machine's device of that type, or None when there is none."""
    if kind == "cpu":
        return Present("cpu", "", "cpu")
    amd = _amd()
    if kind == "rocm" or amd is not None:
        return amd
    return Present("cuda", "", "cuda") if torch.version.hip is None and torch.cuda.is_available() else None


def infer_device(model: nn.Module | None) -> str:
    """Name the device type of a model by its first parameter or buffer; without a model, the machine's best one."""
    tensor: torch.Tensor | None = None
    if model is not None:
        tensor = next(model.parameters(), None)
        if tensor is None:
            tensor = next(model.buffers(), None)
    amd = _amd()
    if tensor is None:
        return "rocm" if amd is not None else ("cuda" if find_device("cuda") else "cpu")
    if amd is not None and tensor.device.type == amd.tensors:
        return "rocm"
    return "cuda" if tensor.device.type == "cuda" else "cpu"


def absence(kind: str) -> str:
    """Say why a device type is not there."""
    return f"this machine has no {kind} device"


def mismatch(spec: DeviceSpec | None, device: Present) -> str | None:
    """Return why a kernel's device condition does not hold on a device, or None when it does."""
    if spec is None or (spec.type == "cuda" and device.type == "rocm"):
        return None
    if spec.type != device.type:
        return f"kernel is for {spec}, the model runs on {device.type}"
    if spec.arch and not any(fnmatchcase(device.arch, pattern) for pattern in spec.arch):
        return f"kernel is for {spec}, this GPU is {device.arch}"
    return None


def closeness(spec: DeviceSpec | None, device: Present) -> int:
    """Rank conditions that hold, 0 first: named arch, arch pattern, type, torch's own name for it, any device."""
    if spec is None:
        return 4
    if spec.type != device.type:
        return 3
    if device.arch in spec.arch:
        return 0
    return 1 if spec.arch else 2


class Mode(Flag):
    """TRAIN needs a backward, INFERENCE does not, COMPILE means that the kernel may be traced by torch.compile."""

    TRAIN = auto()
    INFERENCE = auto()
    COMPILE = auto()


_NAMES = {
    "train": Mode.TRAIN,
    "training": Mode.TRAIN,
    "inference": Mode.INFERENCE,
    "infer": Mode.INFERENCE,
    "compile": Mode.COMPILE,
    "torch_compile": Mode.COMPILE,
}
BOTH = Mode.TRAIN | Mode.INFERENCE


def parse_mode(text: str | Mode | None, where: str) -> Mode | None:
    """Parse ``"train"``, ``"inference|compile"``, ``"train+compile"`` or a Mode; None stays None (any mode).

    Raises RegistrationError that names ``where``, the value found and the accepted words.
    """
    if text is None or isinstance(text, Mode):
        return text
    if not isinstance(text, str):
        raise RegistrationError(f"{where}: mode must be a string or a Mode, found {type(text).__name__}")
    mode = Mode(0)
    for word in text.lower().replace("+", "|").replace(",", "|").split("|"):
        word = word.strip()
        if word not in _NAMES:
            raise RegistrationError(
                f"{where}: unknown mode {text!r}; use train, inference, compile or a sum such as 'train+compile'"
            )
        mode |= _NAMES[word]
    return mode


def mode_name(mode: Mode | None) -> str:
    """Return the spelling that parse_mode reads back; 'any' for None."""
    if mode is None:
        return "any"
    parts = [
        name
        for name, bit in (("train", Mode.TRAIN), ("inference", Mode.INFERENCE), ("compile", Mode.COMPILE))
        if bit in mode
    ]
    return "+".join(parts)


def serves(kernel: Mode | None, *, training: bool, compiled: bool) -> int | None:
    """Rank a kernel's mode for one state of a module: 0 is the best, None means that it does not serve it.

    A training kernel also serves inference (it only keeps more), an inference kernel never serves training. A kernel
    registered for compile may run eagerly, one that is not may not be traced. A registration that names only
    ``compile`` says nothing about train or inference and serves both when compiled.
    """
    if kernel is None:
        return 3
    if compiled and Mode.COMPILE not in kernel:
        return None
    states = kernel & BOTH
    if not states:
        return 2 if compiled else None
    wanted = Mode.TRAIN if training else Mode.INFERENCE
    if wanted in states:
        rank = 0 if states == wanted else 1
    elif not training:
        rank = 2
    else:
        return None
    return rank + (0 if (Mode.COMPILE in kernel) == compiled else 1)


# What a stateless kernel class may define beside forward: two flags of the kernels library.
FLAGS = ("can_torch_compile", "has_backward")
_ALLOWED = {*FLAGS, "forward"}


def check_stateless(kernel: Any, what: str) -> type[nn.Module]:
    """Check that a kernel is an nn.Module class that has a forward and nothing else.

    Its forward runs with the replaced module as ``self``: a constructor would never run, a member would not be found.
    Raises SignatureError.
    """
    if not isinstance(kernel, type) or not issubclass(kernel, nn.Module):
        raise SignatureError(f"kernel {what}: {kernel!r} is not an nn.Module class")
    if kernel.forward is nn.Module.forward:
        raise SignatureError(f"kernel {what}: class {kernel.__name__} defines no forward")
    if kernel.__init__ is not nn.Module.__init__ or kernel.__new__ is not nn.Module.__new__:
        raise SignatureError(
            f"kernel {what}: class {kernel.__name__} must not have a constructor; "
            "its forward gets the replaced module as self"
        )
    own = [name for base in kernel.__mro__[: kernel.__mro__.index(nn.Module)] for name in vars(base)]
    extra = sorted(
        {name for name in own if name not in _ALLOWED and not (name.startswith("__") and name.endswith("__"))}
    )
    if extra:
        raise SignatureError(
            f"kernel {what}: class {kernel.__name__} must not have members of its own, found {', '.join(extra)}"
        )
    return kernel


def check_layer(kernel: type[nn.Module], cls: type[nn.Module], what: str) -> None:
    """Check that a kernel class can take the calls of a layer class. Raises SignatureError."""
    check_signature(
        kernel.forward, cls.forward, f"kernel {what} ({kernel.__name__}.forward)", f"{cls.__name__}.forward"
    )


def check_signature(
    kernel: Callable[..., Any], original: Callable[..., Any], kernel_name: str, original_name: str
) -> None:
    """Compare two signatures: same number of parameters, same kinds, same names of keyword-only parameters.

    Positional parameters may be called otherwise: the bound forward keeps the original's names and passes by position.
    A default that the original has may not be missing from the call, so it is passed on explicitly.
    Callables without a signature (builtins) cannot be compared and pass.
    """
    try:
        ours = list(inspect.signature(kernel).parameters.values())
        theirs = list(inspect.signature(original).parameters.values())
    except ValueError:
        return
    if [p.kind for p in ours] == [Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD]:
        return
    head = f"{kernel_name} cannot replace {original_name}"
    if len(ours) != len(theirs):
        raise SignatureError(f"{head}: {_shape(ours)} has {len(ours)} parameters, {_shape(theirs)} has {len(theirs)}")
    for mine, other in zip(ours, theirs, strict=True):
        if mine.kind != other.kind:
            raise SignatureError(
                f"{head}: parameter {mine.name!r} is {mine.kind.description}, "
                f"{other.name!r} is {other.kind.description}"
            )
        if mine.kind is Parameter.KEYWORD_ONLY and mine.name != other.name:
            raise SignatureError(f"{head}: keyword-only parameter {mine.name!r} against {other.name!r}")


def _shape(parameters: list[Parameter]) -> str:
    return "(" + ", ".join(str(p.replace(annotation=Parameter.empty)) for p in parameters) + ")"


def flag(kernel: Any, name: str, default: bool) -> bool:
    """Read ``has_backward`` or ``can_torch_compile`` of a kernel class or function."""
    return bool(getattr(kernel, name, default))
