"""Launches with everything settled but the tensors: a grid, and a kernel that is already compiled for them.

Triton's own ``kernel[grid](...)`` finds the compiled kernel anew at every call: it binds the arguments by name, looks
at every pointer and number, and makes a key of them. Where the caller knows that none of that can change, the compiled
kernel is started by its own launcher. In the interpreter, and in releases whose compiled kernels take other arguments,
Triton's way is the only one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

Run = Callable[..., Any]

_LEAST = (3, 3)
"""From this release on a compiled kernel is started with all arguments of the function, constants included."""


def _release() -> tuple[int, int]:
    major, minor = triton.__version__.split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()) or 0)


def settled(
    kernel: Any, grid: tuple[int, ...], numbers: tuple[Any, ...], constants: dict[str, Any], warps: int
) -> Callable[..., None]:
    """Return ``start(*tensors)``: launches ``kernel[grid](*tensors, *numbers, **constants)``.

    The caller promises tensors of the dtypes, devices and alignments of the first call. ``numbers`` and ``constants``
    are in the order of the kernel's parameters.
    """
    first = kernel[grid]
    whole = (*grid, 1, 1)[:3]
    behind = (*numbers, *constants.values())
    started: Callable[..., Any] | None = None

    def start(*tensors: Any) -> None:
        nonlocal started
        if started is not None:
            started(*tensors, *behind)
            return
        compiled = first(*tensors, *numbers, **constants, num_warps=warps)
        if _release() >= _LEAST and type(compiled).__name__ == "CompiledKernel":
            started = compiled[whole]

    return start
