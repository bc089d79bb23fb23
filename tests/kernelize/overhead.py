"""What a kernelized forward costs over the bound method it replaces, in ns per call. Run it; nothing here is a test.

    python tests/kernelize/overhead.py

Thread CPU time, the least of 40 rounds, both sides interleaved. The kernel and the original do nothing, so that what
is left is the way there: finding ``forward`` on the class, the branch on ``training`` and the guards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from amd_ops.kernelize import Guard, kernelize_model, register_external_layer, register_layer_kernel, use_kernels

ROUNDS, CALLS = 40, 20_000


class Layer(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class TrainKernel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class InferenceKernel(nn.Module):
    has_backward = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def spend(function: Callable[[Any], Any], x: torch.Tensor) -> float:
    start = time.thread_time_ns()
    for _ in range(CALLS):
        function(x)
    return (time.thread_time_ns() - start) / CALLS


def measure(kernels: list[dict[str, Any]], mode: str | None) -> tuple[float, float]:
    """Return ns per call of the plain bound forward and of the kernelized one."""
    with use_kernels(inherit=False):
        for kernel in kernels:
            register_layer_kernel("K", **kernel)
        register_external_layer(Layer, "K")
        kernelized = Layer().eval()
        kernelize_model(kernelized, mode=mode, device="cpu")
    plain, x = Layer().eval(), torch.randn(4, 64)
    best = [float("inf"), float("inf")]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for index, module in enumerate((plain, kernelized)):
                best[index] = min(best[index], spend(module.forward, x))
    return best[0], best[1]


def main() -> None:
    both = [{"layer": TrainKernel, "mode": "train"}, {"layer": InferenceKernel, "mode": "inference"}]
    guard = Guard(dtypes=(torch.float32, torch.bfloat16), max_rows=512)
    cases = {
        "one kernel": ([{"layer": TrainKernel}], None),
        "train and inference kernels, switched at call time": (both, None),
        "inference kernel without backward": ([both[1]], "inference"),
        "dtype guard": ([{"layer": TrainKernel, "guard": Guard(dtypes=guard.dtypes)}], None),
        "dtype and row guard": ([{"layer": TrainKernel, "guard": guard}], None),
        "all of these at once": ([{**one, "guard": guard} for one in both], None),
    }
    for title, (kernels, mode) in cases.items():
        plain, kernelized = measure(kernels, mode)
        print(
            f"{title:<52} bound method {plain:6.1f} ns, kernelized {kernelized:6.1f} ns, "
            f"overhead {kernelized - plain:6.1f} ns"
        )


if __name__ == "__main__":
    main()
