"""A settled launch starts the compiled kernel that its first launch gave back, and Triton's way where there is none."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")
from amd_ops.backends.triton import launch


class CompiledKernel:
    """What Triton's launch returns on a GPU."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert grid == (3, 2, 1)
        return lambda *args: self.started.append(args)


class Kernel:
    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.launched: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert grid == (3, 2)

        def run(*args: Any, **words: Any) -> Any:
            self.launched.append((args, words))
            return self.compiled

        return run


def settled(kernel: Kernel) -> launch.Run:
    return launch.settled(kernel, (3, 2), (7, 0.5), {"D": 64, "FORM": "llama"}, 4)


def test_the_second_launch_is_the_compiled_kernels_own() -> None:
    kernel = Kernel(CompiledKernel())
    start = settled(kernel)
    start("x", "y")
    start("z", "y")
    assert kernel.launched == [(("x", "y", 7, 0.5), {"D": 64, "FORM": "llama", "num_warps": 4})]
    assert kernel.compiled.started == [("z", "y", 7, 0.5, 64, "llama")]


def test_without_a_compiled_kernel_every_launch_is_tritons() -> None:
    kernel = Kernel(None)
    start = settled(kernel)
    start("x")
    start("y")
    assert [args[0] for args, _ in kernel.launched] == ["x", "y"]


def test_a_release_with_other_arguments_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.triton, "__version__", "3.2.0+rocm")
    kernel = Kernel(CompiledKernel())
    start = settled(kernel)
    start("x")
    start("y")
    assert len(kernel.launched) == 2
    assert kernel.compiled.started == []
