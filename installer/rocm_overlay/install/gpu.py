"""The AMD GPUs of this machine as the kernel driver lists them: no torch, no ROCm tools, no subprocess."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NODES = Path("/sys/class/kfd/kfd/topology/nodes")


@dataclass(frozen=True, order=True)
class Gpu:
    """Architecture such as gfx942, and number of compute units."""

    arch: str
    compute_units: int

    @property
    def is_rdna(self) -> bool:
        """Radeon: gfx10, gfx11 and gfx12 below gfx125, which is an Instinct again."""
        return self.arch.startswith(("gfx10", "gfx11", "gfx12")) and not self.arch.startswith("gfx125")


def gpus(nodes: Path = NODES) -> tuple[Gpu, ...]:
    """Return one entry per GPU node, in the driver's order; nodes without a gfx version are CPUs."""
    found = []
    for properties in sorted(nodes.glob("*/properties"), key=lambda path: (len(path.parent.name), path.parent.name)):
        try:
            lines = properties.read_text("ascii", "replace").splitlines()
        except OSError:
            continue
        values = {key: int(value) for key, _, value in (line.partition(" ") for line in lines) if value.isdigit()}
        version, simds, per_cu = (values.get(key, 0) for key in ("gfx_target_version", "simd_count", "simd_per_cu"))
        if version and simds and per_cu:
            found.append(Gpu(arch_name(version), simds // per_cu))
    return tuple(found)


def arch_name(version: int) -> str:
    """Turn the driver's number into a name: 90402 is gfx942, 90010 gfx90a, 110501 gfx1151."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
