"""Where the Triton kernels would run: on a GPU that triton has a driver for, or on the CPU under its interpreter.

Importing this module imports no triton. ``find()`` does, and only where a GPU is or TRITON_INTERPRET asks for the
interpreter.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ... import device
from .. import Unusable

ARCHES = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12", "sm_8", "sm_9", "sm_10", "sm_12")
"""Beginnings of the names of the chips that Triton's backends compile for. NVIDIA's are there for comparisons."""

_environment: Callable[[], Mapping[str, str]] = dict


@dataclass(frozen=True)
class Target:
    """torch's device type, the chip, the threads of a wave (warp), and the compute units."""

    type: str
    arch: str
    wave: int
    cu_count: int

    @property
    def interpreted(self) -> bool:
        """Return True when kernels run in Triton's interpreter, on CPU tensors."""
        return self.arch == "interpreter"


def use_environment(read: Callable[[], Mapping[str, str]]) -> None:
    """Say where the environment is read, at binding only. ``toggles.py`` calls this once."""
    global _environment
    _environment = read


def environment() -> Mapping[str, str]:
    """Return the environment. Never called in a forward."""
    return _environment()


def find() -> Target:
    """Return the target of this process or raise Unusable."""
    asked = environment().get("TRITON_INTERPRET", "0") not in ("", "0")
    found = device.any_gpu()
    if not asked:
        if found is None or found.type != "cuda":
            raise Unusable("no GPU with a Triton driver, and TRITON_INTERPRET is not 1")
        if not found.arch.startswith(ARCHES):
            raise Unusable(f"{found.arch} is not one of the chips that Triton compiles for ({', '.join(ARCHES)})")
    if importlib.util.find_spec("triton") is None:
        raise Unusable("triton is not installed")
    try:
        runtime = importlib.import_module("triton.runtime")
        if asked:
            return _interpreter(runtime)
        runtime.driver.active.get_current_target()
    except Unusable:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()
        raise Unusable(f"triton: {type(error).__name__}: {text[0][:160] if text else ''}".rstrip(": ")) from error
    assert found is not None
    return Target(found.type, found.arch, wave_of(found.arch), found.cu_count)


def _interpreter(runtime: object) -> Target:
    """Kernels are made for the interpreter when they are defined; a late TRITON_INTERPRET changes nothing."""
    kernels = importlib.import_module(f"{__package__}.kernels.gate")
    if isinstance(kernels.gate, runtime.JITFunction):  # type: ignore[attr-defined]
        raise Unusable("TRITON_INTERPRET was set after the kernels had been compiled for a GPU")
    return Target("cpu", "interpreter", 32, 1)


def wave_of(arch: str) -> int:
    """Threads of a wave: 64 on Instinct (gfx9), 32 on Radeon from gfx10 on and on NVIDIA."""
    return 64 if arch.startswith("gfx9") else 32
