"""Memory of fusion: unique parameter bytes after prepare() against stock, and the peak while it packs.

The peak is summed from torch's own record of every allocation and release (its profiler), and the process's resident
set is read beside it (it has the profiler in it). Target: 0 bytes more afterwards, peak <= stock + one packed matrix.

    python benchmarks/bench_memory.py [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path
from typing import Any

from measuring import save

MARK = "prepare"
SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


def main() -> None:
    """Fuse a model of eight layers while every allocation is recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # so that what is freed leaves the resident set
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"})

    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    import amd_ops
    from amd_ops.preparation import unique_bytes
    from examples.tiny_models import build, tiny_config

    # The profiler only sees the release of memory whose allocation it saw: the model is built under it.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watch:
        model = build(tiny_config("llama", **SHAPE), dtype=torch.bfloat16)
        before = unique_bytes(model)
        gc.collect()
        reset_peak()
        resident = status("VmRSS")
        with record_function(MARK):
            report = amd_ops.prepare(model)
        after, grown = unique_bytes(model), status("VmHWM") - resident
    peak = highest(watch)
    largest = max(packing.nbytes for packing in report.fused)
    rows = {
        "stock_bytes": before,
        "bytes_after": after,
        "groups": len(report.fused),
        "largest_packed_matrix": largest,
        "peak_over_stock": peak,
        "peak_resident_over_stock": grown,
    }
    for name, value in rows.items():
        print(f"{name:26} {value:>12}")
    print("bytes after = stock:", "held" if after == before else "MISSED")
    print("peak <= one packed matrix:", "held" if peak <= largest else "MISSED")
    save(arguments.json, "amd-overlay.bench-memory/1", rows)


def highest(watch: Any) -> int:
    """How far the allocations went above their sum at the start of prepare(), in bytes."""
    events = watch.profiler.kineto_results.events()
    begin = next(event.start_ns() for event in events if event.name() == MARK)
    records = sorted((e for e in events if e.name() == "[memory]"), key=lambda record: record.start_ns())
    total = sum(record.nbytes() for record in records if record.start_ns() < begin)
    level = top = total
    for record in records:
        if record.start_ns() >= begin:
            level += record.nbytes()
            top = max(top, level)
    return int(top - total)


def status(name: str) -> int:
    """Read a size of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Let the high-water mark of the resident set start from now."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
