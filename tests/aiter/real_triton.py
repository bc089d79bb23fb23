"""Run aiter's real Triton kernels in Triton's interpreter, through amd_ops, on a machine without a GPU.

    TRITON_INTERPRET=1 python tests/aiter/real_triton.py CHECKOUT [--arch gfx1100]

Real: everything under CHECKOUT/aiter, unedited: the Python layer and the code of the kernels. Faked, outside of it:
the machine, as in real_layer.py, and ``tl.assume``, which the interpreter takes for a check. What is shown is that our
calls fit the real signatures, reach the kernels and come back with right numbers where the interpreter computes well:
fp32 and fp16, not bf16. Nothing about any GPU. Prints one JSON line per call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.aiter import real_layer  # noqa: E402


def main() -> None:
    """Fake the machine, import the checkout, run every op twice and print what the second call did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--arch", default="gfx1100")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("TRITON_INTERPRET=1 must be set: triton decides at its import")
    sys.path[:0] = [str(arguments.checkout)]
    with tempfile.TemporaryDirectory(prefix="real-triton-") as folder:
        os.environ["AITER_TRITON_ONLY"] = "1"  # known from v0.1.16 on: no C++ at all
        real_layer.fake_machine(Path(folder), arguments.arch, 96)
        real_layer.fake_torch(arguments.arch, 96)
        import triton.language as tl

        tl.assume = lambda condition: None
        real_layer.fake_kernels(arguments.arch, 96)
        for row in exercise(arguments.arch):
            print(json.dumps(row), flush=True)
        os._exit(0)


def exercise(arch: str) -> Iterator[dict[str, Any]]:
    """Calls of attention on tier aiter, and of the other ops with aiter as the provider of tier triton."""
    import torch

    import amd_ops
    from amd_ops import device

    device._probe = lambda: device.Device("cpu", arch, 96)  # type: ignore[assignment]
    amd_ops.refresh()
    torch.manual_seed(0)

    def rand(*shape: int, dtype: Any = torch.float16) -> Any:
        return torch.randn(shape).to(dtype)

    angles = torch.randn(1, 6, 8).repeat(1, 1, 2)
    cos, sin = angles.cos().half(), angles.sin().half()
    pad = (torch.arange(6) >= torch.tensor([[0], [2]]))[:, None, None, :].expand(2, 1, 6, 6).tril()
    q, kv = rand(2, 6, 4, 64), rand(2, 6, 2, 64)
    heads = rand(2, 6, 4, 16).transpose(1, 2), rand(2, 6, 2, 16).transpose(1, 2)
    row, weight = rand(3, 64, dtype=torch.float32), rand(64, dtype=torch.float32)
    cases: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
        ("attention", "causal", (q, kv, kv), {}),
        ("attention", "full", (q, kv, kv), {"is_causal": False}),
        ("attention", "chunk", (rand(1, 8, 4, 64), *(rand(1, 40, 2, 64),) * 2), {}),
        ("attention", "more queries than keys", (rand(1, 70, 4, 64), *(rand(1, 40, 2, 64),) * 2), {}),
        ("attention", "decode", (rand(2, 1, 4, 64), kv, kv), {}),
        ("attention", "head_dim 80", (rand(1, 5, 2, 80), *(rand(1, 9, 2, 80),) * 2), {}),
        ("attention", "head_dim 192/128", (rand(1, 3, 2, 192), rand(1, 5, 2, 192), rand(1, 5, 2, 128)), {}),
        ("attention", "window", (q, kv, kv), {"sliding_window": 3}),
        ("attention", "sinks", (q, kv, kv), {"sinks": torch.randn(4).half()}),
        ("attention", "left padding", (q, kv, kv), {"is_causal": False, "attention_mask": pad}),
        ("rms_norm", "llama fp32", (row, weight, 1e-6), {}),
        ("rms_norm", "fp32_weight fp16", (row.half(), weight.half(), 1e-6), {"form": "fp32_weight"}),
        ("add_rms_norm", "llama fp32", (row, rand(3, 64, dtype=torch.float32), weight, 1e-6), {}),
        ("silu_and_mul", "fp16", (rand(3, 64),), {}),
        ("apply_rope", "grouped", (*heads, cos, sin), {}),
        ("apply_rope", "equal heads", (heads[0], heads[0], cos, sin), {}),
        ("apply_rope", "half of a head", (*heads, *(t[..., 4:12].contiguous() for t in (cos, sin))), {}),
        ("apply_rope", "three heads", (heads[0][:, :3], heads[0][:, :3], cos, sin), {}),
    ]
    toggles: dict[str, object] = {"use_aiter_attention": 1, "use_optimized_ops": 1, "triton_providers": "aiter,ours"}
    with amd_ops.override(**toggles), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op, what, args, options in cases:
            amd_ops.reset_counters()
            getattr(amd_ops, op)(*args, **options)
            got = getattr(amd_ops, op)(*args, **options)
            yield {"op": op, "case": what, **outcome(op, args, options, got)}


def outcome(op: str, args: tuple[Any, ...], options: dict[str, Any], got: Any) -> dict[str, Any]:
    """Who ran the calls, why aiter did not where it did not, and the largest difference from the eager tier."""
    import amd_ops

    (row,) = [row for row in amd_ops.report().as_dict()["ops"] if row["op"] == op]
    ran = [tier["tier"] for tier in row["tiers"] if tier["calls"]]
    theirs = [tier for tier in row["tiers"] if tier["tier"] in ("aiter:triton", "triton:aiter")]
    with amd_ops.override(tiers="eager"):
        want = getattr(amd_ops, op)(*args, **options)
    pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
    worst = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    reasons = [entry["reason"] for tier in theirs for entry in tier["declined"]]
    return {"ran": ran, "declined": reasons, "worst_difference": round(worst, 5)}


if __name__ == "__main__":
    main()
