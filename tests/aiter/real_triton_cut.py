"""Compile the attention kernel of an aiter checkout with the cut that amd_ops passes, and print what it spills.

    python tests/aiter/real_triton_cut.py CHECKOUT [--arch gfx1100]

Needs no GPU: the launch is recorded from aiter's own Python layer and compiled through Triton's AMD backend.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.aiter import real_layer  # noqa: E402

SIZES = ((64, 64), (128, 128), (192, 128), (256, 256))


def main() -> None:
    """Fake the machine, record one launch per head size, compile each and print a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--arch", default="gfx1100")
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.checkout)]
    with tempfile.TemporaryDirectory(prefix="real-cut-") as folder:
        os.environ["AITER_TRITON_ONLY"] = "1"
        real_layer.fake_machine(Path(folder), arguments.arch, 96)
        real_layer.fake_torch(arguments.arch, 96)
        real_layer.fake_kernels(arguments.arch, 96)
        for sizes in SIZES:
            row = {"arch": arguments.arch, "head_dim": sizes, **cost(arguments.arch, *sizes)}
            print(json.dumps(row), flush=True)
        os._exit(0)


def cost(arch: str, size: int, value_size: int) -> dict[str, int]:
    """Spilled registers, scratch bytes and shared memory of a causal bf16 call."""
    import torch

    from amd_ops.backends.aiter.library import triton_function
    from amd_ops.backends.aiter.triton_attention import CUT
    from tests.triton.compiling import Recorder, compiled, number

    function, _ = triton_function("flash_attn_func", ("q", "k", "v"))
    home = sys.modules[function.__module__]
    kernel = home._attn_fwd.kernel if isinstance(home._attn_fwd, Recorder) else home._attn_fwd
    while not hasattr(kernel, "params"):
        kernel = kernel.fn
    recorder = home.__dict__["_attn_fwd"] = Recorder(kernel)
    q, k, v = (torch.empty(1, 512, n, d, dtype=torch.bfloat16) for n, d in ((8, size), (2, size), (2, value_size)))
    with torch.no_grad():
        function(q, k, v, causal=True, config=CUT)
    ((given, named),) = recorder.launches
    made = compiled(kernel, given, named, arch, [key for key in CUT if key.islower()])
    text = made.asm["amdgcn"]
    return {
        "spilled": number(text, "vgpr_spill_count"),
        "scratch": number(text, "private_segment_fixed_size"),
        "shared": made.metadata.shared,
    }


if __name__ == "__main__":
    main()
