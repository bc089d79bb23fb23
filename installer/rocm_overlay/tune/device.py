"""Which GPU a table is for: the (gfx, CU count) pair that aiter looks up, and the published peaks of products."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import TargetError, UsageError
from ..install.gpu import NODES, gpus, parse

# aiter's rule for rows written before the gfx column existed (facts: 256 -> gfx950, 80 and 304 -> gfx942).
LEGACY_CU_TO_GFX = {256: "gfx950", 304: "gfx942", 80: "gfx942"}

# CU counts a whole GPU or one of its partitions reports. A pair outside this list is possible, but deserves a question.
KNOWN_CU_COUNTS = {
    "gfx90a": frozenset({104, 110, 208, 220}),
    "gfx942": frozenset({304, 228, 152, 80, 76, 40, 38, 20}),
    "gfx950": frozenset({256, 128, 64, 32}),
    "gfx1250": frozenset({256, 96}),
}


@dataclass(frozen=True, order=True)
class Device:
    """A GPU as aiter's table knows it: architecture name and number of compute units."""

    gfx: str
    cu_num: int

    def __str__(self) -> str:
        return f"{self.gfx}:{self.cu_num}"

    @property
    def folder(self) -> str:
        """The name of this device's folder in ``tuning_csv``."""
        return f"{self.gfx}_{self.cu_num}"


@dataclass(frozen=True)
class Gpu:
    """Published peaks of a product: memory in bytes per second, dense bf16 in operations per second."""

    name: str
    device: Device | None
    hbm: float
    bf16: float


# The first entry of a device is its default: MI300X and MI325X cannot be told apart by gfx and CU count.
GPUS = (
    Gpu("MI300X", Device("gfx942", 304), 5.3e12, 1307.4e12),
    Gpu("MI325X", Device("gfx942", 304), 6.0e12, 1307.4e12),
    Gpu("MI308X", Device("gfx942", 80), 5.3e12, 344.0e12),
    Gpu("MI355X", Device("gfx950", 256), 8.0e12, 2516.6e12),
    Gpu("H200", None, 4.8e12, 989.4e12),
)


def parse_device(text: str) -> Device:
    """Return the device of ``MI300X``, ``gfx942`` (the usual product) or ``gfx942:304``. Raises UsageError."""
    found = parse(text)
    if not found.compute_units:
        message = f"{text!r} does not say how many compute units the GPU has"
        raise UsageError("bad-gpu", message, remedy=f"write {found.arch}:COUNT, for example gfx942:304")
    return Device(found.arch, found.compute_units)


def parse_gpu(text: str) -> Gpu:
    """Return the peaks of a product name or of a device's default product; raise OverlayError when none are known."""
    for gpu in GPUS:
        if gpu.name.lower() == text.strip().lower():
            return gpu
    device = parse_device(text)
    for gpu in GPUS:
        if gpu.device == device:
            return gpu
    names = ", ".join(gpu.name for gpu in GPUS)
    raise UsageError(
        "no-peaks", f"no published peaks are known for {device}", remedy=f"use one of {names}, or give --hbm-tbs"
    )


def infer_gfx(cu_num: int) -> str | None:
    """Return the architecture of a row without a gfx column, or None when the CU count does not decide it."""
    return LEGACY_CU_TO_GFX.get(cu_num)


def pair_problem(gfx: str, cu_num: int) -> tuple[bool, str] | None:
    """Return (is an error, sentence) for a pair that does not look like a real device, None for a known one."""
    if cu_num in KNOWN_CU_COUNTS.get(gfx, frozenset()):
        return None
    owners = sorted(name for name, counts in KNOWN_CU_COUNTS.items() if cu_num in counts)
    if owners:
        return True, f"{cu_num} compute units belong to {' or '.join(owners)}, not to {gfx}"
    return False, f"no {gfx} with {cu_num} compute units is known"


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
