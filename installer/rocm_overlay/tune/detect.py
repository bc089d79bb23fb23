"""The GPUs of this machine as aiter's tables know them."""

from __future__ import annotations

from pathlib import Path

from ..errors import TargetError
from ..install.gpu import NODES, gpus
from .device import Device


def devices(nodes: Path = NODES) -> tuple[Device, ...]:
    """Return one device per GPU, in the driver's order."""
    return tuple(Device(gpu.arch, gpu.compute_units) for gpu in gpus(nodes))


def only_device(nodes: Path = NODES) -> Device:
    """Return this machine's device; raise OverlayError when there is none, or when its GPUs differ."""
    found = sorted(set(devices(nodes)))
    if len(found) == 1:
        return found[0]
    what = "no AMD GPU is visible" if not found else f"this machine has {', '.join(map(str, found))}"
    raise TargetError("no-gpu", what, remedy="name the GPU with --gpu, for example gfx942:304")
