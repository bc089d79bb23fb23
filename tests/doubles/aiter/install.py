"""``fake_aiter``: put the double in place for the length of a ``with`` block, then leave no trace."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from . import catalog
from .package import Finder, installed
from .state import Double, Faults


@contextmanager
def fake_aiter(
    version: str = "v0.1.9.post1",
    arch: str | None = "gfx942",
    cu_count: int = 304,
    *,
    device_type: str = "cpu",
    faults: Faults | None = None,
    attach: bool = True,
    tolerate_violations: bool = False,
) -> Iterator[Double]:
    """Install aiter ``version`` on a fake GPU ``arch`` whose tensors live on ``device_type``.

    ``arch=None`` is a machine without a GPU: there ``import aiter`` raises RuntimeError, as the real one does.
    ``attach`` tells amd_ops about the fake GPU (otherwise amd_ops is not touched, and not imported).
    On a normal exit every Violation that happened fails the test, also those that somebody swallowed.
    """
    faults = faults or Faults()
    if arch is None and faults.import_error is None:
        faults.import_error = RuntimeError("ROCm version file not found")
    double = Double(catalog.load(version), arch or "none", cu_count, device_type, faults)
    before = installed()
    for name in before:
        del sys.modules[name]
    library: Any = torch.library.Library("aiter", "FRAGMENT")
    finder = Finder(double, library)
    sys.meta_path.insert(0, finder)
    restore_probe = None
    try:
        if attach:
            restore_probe = _attach(double, arch)
        yield double
        if not tolerate_violations and double.violations:
            raise AssertionError("aiter was called against its contract:\n  " + "\n  ".join(double.violations))
    finally:
        sys.meta_path.remove(finder)
        for name in installed():
            del sys.modules[name]
        library._destroy()
        sys.modules.update(before)
        if restore_probe is not None:
            restore_probe()


def _attach(double: Double, arch: str | None) -> Callable[[], None]:
    """Replace amd_ops' device probe; return what undoes it."""
    amd_ops = importlib.import_module("amd_ops")
    device: ModuleType = importlib.import_module("amd_ops.device")
    original = device._probe
    answer = None if arch is None else device.Device(type=double.device_type, arch=arch, cu_count=double.cu_count)

    def restore() -> None:
        device._probe = original  # type: ignore[attr-defined]
        amd_ops.refresh()

    device._probe = lambda: answer  # type: ignore[attr-defined]
    amd_ops.refresh()
    return restore
