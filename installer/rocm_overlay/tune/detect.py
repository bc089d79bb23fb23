"""The GPUs of this machine as the kernel driver lists them: no torch, no ROCm tools."""

from __future__ import annotations

from pathlib import Path

from .device import Device
from .errors import EXIT_TARGET_MISSING, TuneError

NODES = Path("/sys/class/kfd/kfd/topology/nodes")


def devices(nodes: Path = NODES) -> tuple[Device, ...]:
    """Return one device per GPU node; nodes without compute units are CPUs."""
    found = []
    for properties in sorted(nodes.glob("*/properties")):
        try:
            lines = properties.read_text("ascii", "replace").splitlines()
        except OSError:
            continue
        values = {key: int(value) for key, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
        version, simds, per_cu = (values.get(key, 0) for key in ("gfx_target_version", "simd_count", "simd_per_cu"))
        if version and simds and per_cu:
            # 90402 is gfx942 and 90010 gfx90a: two decimal digits each, the last two written in hexadecimal.
            name = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
            found.append(Device(name, simds // per_cu))
    return tuple(found)


def only_device(nodes: Path = NODES) -> Device:
    """Return this machine's device; raise TuneError when there is none, or when its GPUs differ."""
    found = sorted(set(devices(nodes)))
    if len(found) == 1:
        return found[0]
    what = "no AMD GPU is visible" if not found else f"this machine has {', '.join(map(str, found))}"
    raise TuneError("no-gpu", what, "name the GPU with --gpu, for example gfx942:304", EXIT_TARGET_MISSING)
