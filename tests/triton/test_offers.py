"""Where tier triton is refused, and that asking costs no import of triton there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import amd_ops
from amd_ops import device
from amd_ops.backends.triton import target
from amd_ops.device import Device
from tests.ops.conftest import clean_toggles

__all__ = ["clean_toggles"]
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="these tests are about processes without the interpreter"
)


def refused(op: str = "rms_norm") -> str:
    """Call the op with its family asked for; return why tier triton did not run."""
    with amd_ops.override(use_optimized_ops=1):
        amd_ops.rms_norm(torch.randn(2, 8), torch.ones(8), 1e-6)
        rows = [row for row in amd_ops.report().as_dict()["ops"] if row["op"] == op]
    (tally,) = [t for t in rows[0]["tiers"] if t["tier"] == "triton"]
    assert tally["calls"] == 0
    return str(tally["declined"][0]["reason"])


def gpu(monkeypatch: pytest.MonkeyPatch, arch: str, kind: str = "cuda") -> None:
    monkeypatch.setattr(device, "any_gpu", lambda: Device(kind, arch, 96))


def driver(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """A triton.runtime whose driver raises ``error`` or answers."""

    class Active:
        @property
        def active(self) -> object:
            if error is not None:
                raise error
            return types.SimpleNamespace(get_current_target=lambda: None)

    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(target.importlib, "import_module", lambda name: types.SimpleNamespace(driver=Active()))


def test_a_cpu_without_the_interpreter_is_refused_and_nobody_is_warned(recwarn: pytest.WarningsRecorder) -> None:
    assert "no GPU with a Triton driver" in refused()
    assert not [w for w in recwarn if issubclass(w.category, amd_ops.DeclinedWarning)]


def test_a_fake_gpu_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, "gfx942", "cpu")
    assert "no GPU with a Triton driver" in refused()


@pytest.mark.parametrize("arch", ["gfx803", "gfx906", "gfx1030", "sm_75"])
def test_chips_that_triton_does_not_compile_for_are_refused(monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    gpu(monkeypatch, arch)
    assert f"{arch} is not one of the chips" in refused()


def test_a_missing_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, "gfx1100")
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    assert refused() == "triton is not installed"


@pytest.mark.parametrize("error", [RuntimeError("0 active drivers ([]). There should only be one."), KeyError("x")])
def test_a_triton_without_a_driver_is_refused(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    gpu(monkeypatch, "gfx1100")
    driver(monkeypatch, error)
    assert refused().startswith(f"triton: {type(error).__name__}")


@pytest.mark.parametrize(
    ("arch", "wave"), [("gfx90a", 64), ("gfx942", 64), ("gfx950", 64), ("gfx1100", 32), ("gfx1201", 32), ("sm_90", 32)]
)
def test_a_gpu_with_a_driver_is_a_target(monkeypatch: pytest.MonkeyPatch, arch: str, wave: int) -> None:
    gpu(monkeypatch, arch)
    driver(monkeypatch, None)
    assert target.find() == target.Target("cuda", arch, wave, 96)


@pytest.mark.parametrize("arch", ["gfx1100", "gfx1151", "gfx1201"])
def test_auto_turns_the_optimized_ops_on_for_radeon(monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    monkeypatch.setattr(device, "_probe", lambda: Device("cuda", arch, 96))
    monkeypatch.setenv("AMD_OPS", "auto")
    assert amd_ops.refresh().use_optimized_ops


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_no_refused_process_imports_triton() -> None:
    program = (
        "import sys, torch, amd_ops\n"
        "amd_ops.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-6)\n"
        "amd_ops.explain('silu_and_mul', torch.ones(2, 8)), str(amd_ops.report())\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'triton'))"
    )
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environ["USE_OPTIMIZED_OPS"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
