"""The AMD GPUs of this machine as the kernel driver lists them: no torch, no ROCm tools, no subprocess."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, alike

NODES = Path("/sys/class/kfd/kfd/topology/nodes")
PRODUCTS = {
    "MI300X": ("gfx942", 304),
    "MI325X": ("gfx942", 304),
    "MI300A": ("gfx942", 228),
    "MI308X": ("gfx942", 80),
    "MI350X": ("gfx950", 256),
    "MI355X": ("gfx950", 256),
    "MI250X": ("gfx90a", 110),
    "MI250": ("gfx90a", 104),
    "MI210": ("gfx90a", 104),
}
"""Architecture and compute units of products, the usual one of an architecture first."""
_GFX = re.compile(r"(gfx[0-9a-f]{3,5})(?:[:_](\d{1,4}))?")


@dataclass(frozen=True, order=True)
class Gpu:
    """Architecture such as gfx942, and number of compute units."""

    arch: str
    compute_units: int

    @property
    def is_rdna(self) -> bool:
        """Radeon: gfx10, gfx11 and gfx12 below gfx125, which is an Instinct again."""
        return self.arch.startswith(("gfx10", "gfx11", "gfx12")) and not self.arch.startswith("gfx125")


def parse(text: str) -> Gpu:
    """Return the GPU of ``MI300X``, ``gfx942`` or ``gfx942:304``; without a count the usual one, 0 where none is known.

    Raises UsageError.
    """
    word = text.strip()
    products = {name.lower(): Gpu(*pair) for name, pair in PRODUCTS.items()}
    if word.lower() in products:
        return products[word.lower()]
    match = _GFX.fullmatch(word)
    if match is None or match[2] == "0":
        near = alike(word, PRODUCTS) or ["MI300X"]
        remedy = f"write a product such as {', '.join(near)}, or an architecture: gfx942, gfx942:304, gfx1201"
        raise UsageError("bad-gpu", f"{text!r} is not a GPU", remedy=remedy)
    usual = next((gpu.compute_units for gpu in products.values() if gpu.arch == match[1]), 0)
    return Gpu(match[1], int(match[2]) if match[2] else usual)


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
