"""Which GPU the fast paths would run on. Asked lazily, cached, without subprocesses.

Examples:
    >>> amd_ops.device.current() is None or amd_ops.device.current().arch.startswith("gfx")
    True
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """A GPU as the tiers see it: torch's device type, its gfx name without features, and its compute units."""

    type: str
    arch: str
    cu_count: int


_UNKNOWN = object()
_cached: object = _UNKNOWN


def current() -> Device | None:
    """Return the HIP device that torch would use now, or None without a HIP torch or a visible GPU."""
    global _cached
    if _cached is _UNKNOWN:
        _cached = _probe()
    assert _cached is None or isinstance(_cached, Device)
    return _cached


def forget() -> None:
    """Drop the cached answer; the next current() probes again."""
    global _cached
    _cached = _UNKNOWN


def why_none() -> str:
    """Say in a few words why there is no device (only meaningful when current() is None)."""
    if torch.version.hip is None:
        return "no HIP device: torch is built without HIP"
    return "no HIP device: torch sees no GPU"


def _probe() -> Device | None:
    """Ask torch. Tests replace this function; ``Device("cpu", ...)`` makes CPU tensors count as that GPU."""
    if torch.version.hip is None or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(type="cuda", arch=properties.gcnArchName.split(":")[0], cu_count=properties.multi_processor_count)


def any_gpu() -> Device | None:
    """Return the HIP device, or else an NVIDIA one (``arch`` "sm_90"): tier triton runs there too, for comparison."""
    found = current()
    if found is not None or torch.version.cuda is None or not torch.cuda.is_available():
        return found
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device("cuda", f"sm_{properties.major}{properties.minor}", properties.multi_processor_count)
