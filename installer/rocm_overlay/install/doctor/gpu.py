"""Checks on the GPU, torch's build and aiter, without importing any of them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from .context import Context
from .registry import Finding, finding

_HIP = re.compile(rb"^hip\b[^=\n]*=\s*(.+)$", re.MULTILINE)


def devices(c: Context) -> Iterator[Finding]:
    """Which GPUs there are, and whether this user may open them."""
    if not c.gpus:
        yield finding("no-gpu", f"{c.machine.nodes} lists no GPU")
        return
    yield finding("gpu", *(f"{one.arch} with {one.compute_units} compute units" for one in c.gpus))
    if len({one.arch for one in c.gpus}) > 1:
        yield finding("mixed-gpus", ", ".join(sorted({one.arch for one in c.gpus})))
    if not os.access(c.machine.kfd, os.R_OK | os.W_OK):
        reason = "cannot be opened by this user" if c.machine.kfd.exists() else "is not here"
        yield finding("kfd-access", f"{c.machine.kfd} {reason}", paths=(c.machine.kfd,))


def torch(c: Context) -> Iterator[Finding]:
    """A torch that cannot use the GPU."""
    if not c.gpus or c.target is None:
        return
    path = c.target.site / "torch" / "version.py"
    match = _HIP.search(path.read_bytes()) if path.is_file() else None
    if match is not None and match[1].strip() == b"None":
        yield finding("torch-not-rocm", f"{path} says hip = None", paths=(path,))


def aiter(c: Context) -> Iterator[Finding]:
    """aiter missing, or there without the means to compile its kernels."""
    if not c.gpus or c.target is None:
        return
    package = c.target.site / "aiter"
    if not package.is_dir():
        yield finding("aiter-missing", f"{package} does not exist")
        return
    folder = c.machine.environ.get("AITER_JIT_DIR")
    built = [
        path for place in (package / "jit", Path(folder) if folder else None) if place for path in place.glob("*.so")
    ]
    if not built and _hipcc(c) is None:
        yield finding("aiter-unbuildable", f"no prebuilt kernel in {package / 'jit'}, and no hipcc on PATH or in ROCm")


def variables(c: Context) -> Iterator[Finding]:
    """Variables of ROCm and aiter that are missing, or set to what only a build needs."""
    environ = c.machine.environ
    radeons = sorted({one.arch for one in c.gpus if one.is_rdna})
    flag = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
    if radeons and environ.get(flag) != "1":
        yield finding("aotriton-experimental", f"GPU {', '.join(radeons)}, and {flag} is {environ.get(flag, 'unset')}")
    archs = [one for one in re.split(r"[;,\s]+", environ.get("GPU_ARCHS", "")) if one]
    if len(archs) > 1:
        yield finding("gpu-archs", f"GPU_ARCHS={environ['GPU_ARCHS']}: aiter would take {archs[-1]}")
    shared = c.machine.temporary / "aiter_configs"
    if shared.is_dir() and "AITER_CONFIG_GEMM_BF16" not in environ:
        owner = shared.stat().st_uid
        other = f" and belongs to uid {owner}, this is uid {os.geteuid()}" if owner != os.geteuid() else ""
        yield finding("aiter-configs-shared", f"{shared} exists{other}", paths=(shared,))


def _hipcc(c: Context) -> str | None:
    found = shutil.which("hipcc", path=c.machine.environ.get("PATH"))
    roots = [c.machine.environ.get(name) for name in ("ROCM_PATH", "ROCM_HOME", "HIP_PATH")]
    for root in [*filter(None, roots), "/opt/rocm"]:
        found = found or shutil.which("hipcc", path=f"{root}/bin")
    return found


CHECKS = (devices, torch, aiter, variables)
