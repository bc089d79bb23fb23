"""Trace the torch ops of the tier for a GPU that is not there, and print what the graph launches.

Run by test_graph.py in a process of its own: the chip is settled when amd_ops.backends.triton.library is imported.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from functorch.compile import aot_function
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from amd_ops.backends.triton import target  # noqa: E402


class Traced(Exception):
    """There is a graph; nothing here could run it."""


def main() -> None:
    """Print, as JSON, the kernels in their order, each with the arguments that it writes, and the ops left opaque."""
    chip = GPUTarget("hip", "gfx942", 64)
    driver.set_active(types.SimpleNamespace(get_current_target=lambda: chip, get_current_device=lambda: 0))
    target.find = lambda: target.Target("cuda", "gfx942", 64, 304)
    from amd_ops.backends.triton import library as ops

    def block(x: Any, r: Any, w: Any, q: Any, k: Any, c: Any, s: Any) -> Any:
        y, total = ops.add_rms_norm(x, r, w, 1e-6, "llama")
        out = ops.gated(ops.rms_norm(y, w, 1e-6, "gemma"), "silu")
        dx = ops.gated_backward(y, out, "silu")
        turned = ops.apply_rope(q, k, c, s, 1, False)
        return total, *ops.norm_backward(total, w, dx, y, 1e-6, "llama"), *ops.apply_rope(*turned, c, s, 1, True)

    with FakeTensorMode():
        rows = [torch.empty(shape, device="cuda", dtype=torch.bfloat16) for shape in ((4, 64), (4, 64), (64,))]
        heads = [torch.empty((1, 3, n, 64), device="cuda", dtype=torch.bfloat16).transpose(1, 2) for n in (4, 2)]
        tables = [torch.empty((1, 3, 64), device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        nodes = graph_of(block, (*rows, *heads, *tables))
    launches = [node.kwargs for node in nodes if "triton_kernel_wrapper" in str(node.target)]
    found = {
        "launches": [
            [kernel_side_table.get_kernel(launch["kernel_idx"]).fn.__name__, sorted(launch["tensors_to_clone"])]
            for launch in launches
        ],
        "opaque": [str(node.target) for node in nodes if "amd_ops" in str(node.target)],
    }
    print(json.dumps(found))


def graph_of(block: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """The nodes that torch.compile's front end hands to a backend."""
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        raise Traced

    with contextlib.suppress(Traced), torch.no_grad():
        aot_function(block, fw_compiler=keep)(*inputs)
    return list(graphs[0].graph.nodes)


if __name__ == "__main__":
    main()
