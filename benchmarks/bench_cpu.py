"""A Llama-3.2-1B-shaped model on the CPU in bf16: prefill of 128 tokens and decode of 16, overlaid against stock.

Same process, interleaved, wall-clock free: processor time of all threads. ``--layers`` keeps the layer's shapes and
shortens the stack, for machines where sixteen layers of emulated bf16 take minutes. Ratios with bootstrap intervals.

    python benchmarks/bench_cpu.py [--layers N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

from measuring import ratio_interval, save

SHAPE: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
ON: dict[str, object] = dict.fromkeys(
    ("use_aiter_attention", "use_aiter_gemm", "use_optimized_ops", "use_fused_projections"), 1
)


def main() -> None:
    """Measure both phases on both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    import torch
    from transformers import DynamicCache

    import amd_ops
    from tests.parity import twins

    pair = twins.new_pair("llama", "bfloat16", num_hidden_layers=arguments.layers, **SHAPE)
    ids = torch.randint(3, 30000, (1, 128), generator=torch.Generator().manual_seed(0))

    def once(model: Any) -> dict[str, float]:
        cache = DynamicCache()
        start = time.process_time()
        model(ids, past_key_values=cache, logits_to_keep=1)
        middle = time.process_time()
        for step in range(16):
            model(ids[:, step : step + 1], past_key_values=cache)
        return {"prefill": middle - start, "decode": time.process_time() - middle}

    samples: dict[str, dict[str, list[float]]] = {p: {"stock": [], "overlaid": []} for p in ("prefill", "decode")}
    with torch.inference_mode(), amd_ops.override(**ON, tiers="torch,eager"):
        for turn in range(arguments.rounds + 1):
            sides = [("stock", pair.stock), ("overlaid", pair.overlay)]
            for side, model in sides if turn % 2 else reversed(sides):
                for phase, seconds in once(model).items():
                    if turn:  # the first turn warms up and packs
                        samples[phase][side].append(seconds)
    for phase, sides in samples.items():
        ratio, low, high = ratio_interval(sides["overlaid"], sides["stock"])
        print(f"{phase:8} overlaid / stock {ratio:.3f} [{low:.3f}, {high:.3f}]  {'held' if low <= 1.0 else 'SLOWER'}")
    save(arguments.json, "amd-overlay.bench-cpu/1", {"layers": arguments.layers, "seconds": samples})


if __name__ == "__main__":
    main()
