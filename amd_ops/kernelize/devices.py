"""Which device a kernel is for, and which devices this machine has.

torch calls an AMD GPU ``cuda``. So on a HIP build of torch a request for ``cuda`` means the AMD GPU: kernels
registered for ``rocm`` are taken first, then those registered for ``cuda``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from .. import device as amd
from .errors import RegistrationError

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
