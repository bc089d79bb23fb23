"""Tier triton on a GPU: each kernel's bandwidth as a share of a measured copy, and its time against torch eager,
torch.compile and, where installed, liger-kernel; then decode and prefill of 1B and 8B shapes against stock.

Every sample is kept. Variants are interleaved and minima compared; a first call (compilation, probe, cuts) is never
timed. Without a GPU that triton has a driver for the program refuses with exit code 2: the interpreter says nothing
about speed.

    python benchmarks/bench_triton.py [--json FILE] [--kernels-only] [--rows 1,16,256,4096,16384] [--hidden 4096]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "amd-overlay.bench-triton/1"
ROUNDS = 30
SHAPES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
PROMPT, NEW_TOKENS = 512, 64
TOGGLES = {"USE_OPTIMIZED_OPS": "1", "USE_FUSED_PROJECTIONS": "1", "AMD_OPS_TIERS": "triton,torch,eager"}

Variants = dict[str, Callable[[], object]]


def main() -> None:
    """Measure, print a table, and write everything with --json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    parser.add_argument("--kernels-only", action="store_true", help="leave out the whole models")
    parser.add_argument("--rows", default="1,16,256,4096,16384")
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--worker", choices=sorted(SHAPES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    refuse_without_gpu()
    if arguments.worker:
        print(json.dumps(model_samples(arguments.worker)))
        return
    content: dict[str, Any] = {"schema": SCHEMA, "command": " ".join(sys.argv), "device": device_text()}
    content["copy_gb_s"] = copy_bandwidth()
    print(f"{content['device']}: copies at {content['copy_gb_s']:.0f} GB/s")
    content["kernels"] = [
        row for rows in map(int, arguments.rows.split(",")) for row in kernel_rows(rows, arguments.hidden)
    ]
    print_kernels(content["kernels"], content["copy_gb_s"])
    if not arguments.kernels_only:
        content["models"] = {shape: model_sides(shape) for shape in SHAPES}
        print_models(content["models"])
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


def refuse_without_gpu() -> None:
    """Exit with code 2 where tier triton would not run on a GPU."""
    from amd_ops.backends.triton import target

    try:
        found = target.find()
    except target.Unusable as reason:
        print(f"bench_triton: {reason}; nothing was measured.", file=sys.stderr)
        raise SystemExit(2) from None
    if found.interpreted:
        print("bench_triton: the interpreter says nothing about speed; nothing was measured.", file=sys.stderr)
        raise SystemExit(2)


def device_text() -> str:
    """Name the GPU and the releases."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    arch = getattr(properties, "gcnArchName", f"sm_{properties.major}{properties.minor}")
    return f"{properties.name} {arch}, torch {torch.__version__}, triton {triton.__version__}"


def samples(variants: Variants, launches: int = 20) -> dict[str, list[float]]:
    """Microseconds per call, ROUNDS samples of each variant, interleaved; each is warmed up first."""
    for call in variants.values():
        for _ in range(5):
            call()
    torch.cuda.synchronize()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, call in variants.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(launches):
                call()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) * 1e3 / launches)
    return times


def copy_bandwidth() -> float:
    """GB/s (read and written) of torch's copy of 1 GiB: what this GPU's memory gives."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / min(samples({"copy": lambda: target.copy_(source)})["copy"]) / 1e3


def kernel_rows(rows: int, hidden: int) -> list[dict[str, Any]]:
    """One row per kernel: the bytes it must move, and samples of every variant."""
    return [
        {"kernel": name, "rows": rows, "hidden": hidden, "bytes": moved, "us": samples(variants)}
        for name, (moved, variants) in kernel_variants(rows, hidden, "cuda").items()
    ]


def kernel_variants(rows: int, hidden: int, where: str) -> dict[str, tuple[int, Variants]]:
    """Per kernel the bytes that it reads and writes at least, and the ways to compute it."""
    import amd_ops
    from amd_ops.ops.activation import torch_silu_and_mul
    from amd_ops.ops.norm import eager_add_rms_norm, eager_rms_norm
    from amd_ops.ops.rope import torch_rope

    make = {"dtype": torch.bfloat16, "device": where}
    x, residual, weight = (
        torch.randn(rows, hidden, **make),
        torch.randn(rows, hidden, **make),
        torch.ones(hidden, **make),
    )
    both, heads = torch.randn(rows, 2 * hidden, **make), max(hidden // 128, 1)
    q, k = (torch.randn(1, rows, count, 128, **make).transpose(1, 2) for count in (heads, max(heads // 4, 1)))
    table = torch.randn(1, rows, 128, **make)
    calls: dict[str, tuple[int, Callable[..., object], Callable[..., object], tuple[Any, ...]]] = {
        "rms_norm": (2 * x.nbytes, amd_ops.rms_norm, lambda *a: eager_rms_norm(*a, "llama"), (x, weight, 1e-6)),
        "add_rms_norm": (
            4 * x.nbytes, amd_ops.add_rms_norm, lambda *a: eager_add_rms_norm(*a, "llama"), (x, residual, weight, 1e-6),
        ),
        "silu_and_mul": (3 * x.nbytes, amd_ops.silu_and_mul, torch_silu_and_mul, (both,)),
        "apply_rope": (
            2 * (q.nbytes + k.nbytes + table.nbytes), amd_ops.apply_rope, lambda *a: torch_rope(*a, 1),
            (q, k, table, table),
        ),
    }  # fmt: skip
    found: dict[str, tuple[int, Variants]] = {}
    for name, (moved, ours, stock, args) in calls.items():
        compiled = torch.compile(stock, dynamic=False)
        variants: Variants = {
            "triton": lambda ours=ours, args=args: ours(*args),
            "eager": lambda stock=stock, args=args: stock(*args),
            "compile": lambda compiled=compiled, args=args: compiled(*args),
        }
        other = liger(name)
        if other is not None:
            variants["liger"] = lambda other=other, args=args: other(*args)
        found[name] = moved, variants
    return found


def liger(name: str) -> Callable[..., object] | None:
    """liger-kernel's forward of the same contract, never in place; None where it is not installed or has none."""
    try:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        return None
    known: dict[str, Callable[..., object]] = {
        "rms_norm": lambda x, w, eps: LigerRMSNormFunction.apply(x, w, eps, 0.0, "llama", False),
        "silu_and_mul": lambda x: LigerSiLUMulFunction.apply(*x.chunk(2, -1)),
    }
    return known.get(name)


def print_kernels(rows: list[dict[str, Any]], copy_gb_s: float) -> None:
    """One line per kernel and size: share of the copy's bandwidth, and how much slower the others are."""
    print(f"{'kernel':14} {'rows':>6} {'hidden':>6} {'us':>9} {'of copy':>8}   slower than triton by")
    for row in rows:
        best = {name: min(times) for name, times in row["us"].items()}
        share = row["bytes"] / best["triton"] / 1e3 / copy_gb_s
        others = ", ".join(f"{name} {time / best['triton']:.2f}x" for name, time in best.items() if name != "triton")
        print(f"{row['kernel']:14} {row['rows']:6} {row['hidden']:6} {best['triton']:9.1f} {share:8.1%}   {others}")


def model_sides(shape: str) -> dict[str, Any]:
    """Stock and overlaid, each in a process of its own, twice in turn."""
    sides: dict[str, Any] = {"stock": [], "overlaid": []}
    for _ in range(2):
        for side, kept in sides.items():
            environ = {
                **os.environ,
                **(TOGGLES if side == "overlaid" else {}),
                "HF_HUB_OFFLINE": "1",
                "BENCH_SIDE": side,
            }
            command = [sys.executable, "-W", "ignore", __file__, "--worker", shape]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{shape}, {side}: the worker failed\n{done.stderr}")
            kept.append(json.loads(done.stdout.splitlines()[-1]))
    return sides


def model_samples(shape: str) -> dict[str, Any]:
    """Microseconds of prefills of PROMPT tokens and of single decode steps with a static cache; random weights."""
    import tempfile

    sys.path.insert(0, str(ROOT))
    if os.environ["BENCH_SIDE"] == "overlaid":
        from benchmarks.bench_launches import _serve_overlay

        _serve_overlay("llama", Path(tempfile.mkdtemp()))
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    config = LlamaConfig(**SHAPES[shape], num_key_value_heads=8, vocab_size=128256, max_position_embeddings=4096)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        net = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 1000, (1, PROMPT), device="cuda")
    cache = StaticCache(config=config, max_cache_len=PROMPT + NEW_TOKENS + 8)
    at = torch.arange(PROMPT, device="cuda")
    with torch.inference_mode():
        prefill = samples({"prefill": lambda: net(ids, past_key_values=cache, cache_position=at, use_cache=True)}, 1)
        step = torch.tensor([PROMPT], device="cuda")
        one = ids[:, :1]
        decode = samples(
            {"decode": lambda: net(one, past_key_values=cache, cache_position=step, use_cache=True)}, NEW_TOKENS
        )
    report = sys.modules["amd_ops"].report().as_dict()["ops"] if "amd_ops" in sys.modules else []
    return {**prefill, **decode, "ops": report}


def print_models(models: dict[str, Any]) -> None:
    """Ratios of minima, only where the two runs of a side agree and do not overlap with the other's."""
    for shape, sides in models.items():
        for phase in ("prefill", "decode"):
            stock, ours = ([min(run[phase]) for run in sides[side]] for side in ("stock", "overlaid"))
            apart = max(ours) < min(stock) or max(stock) < min(ours)
            ratio = f"{min(stock) / min(ours):.2f}x" if apart else "no difference beyond noise"
            print(f"{shape} {phase:8} stock {min(stock):10.1f} us   overlaid {min(ours):10.1f} us   {ratio}")


if __name__ == "__main__":
    main()
