"""`overlay tune merge` of 100 000 rows: seconds of processor time to read, merge and write one table with its fsync.

python benchmarks/bench_merge.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from rocm_overlay.tune.device import Device
from rocm_overlay.tune.merge import Source, merge_files, write_merged
from rocm_overlay.tune.schema import COLUMNS, rules_for

ROWS, ROUNDS, LIMIT_S = 100_000, 5, 2.0


def main() -> None:
    """Merge the table several times and print the median against the limit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = [Source(_table(folder / "big.csv"), "user")]
        seconds = []
        for _ in range(ROUNDS):
            started = time.process_time()
            merged = merge_files(sources, Device("gfx942", 304), rules_for("0.1.20.post1"))
            write_merged(merged, folder / "out.csv", sources)
            seconds.append(time.process_time() - started)
    median = statistics.median(seconds)
    verdict = "met" if median <= LIMIT_S else "MISSED"
    print(f"merge of {len(merged.rows)} rows: median {median:.2f} s, limit {LIMIT_S:g} s: {verdict}")
    if median > LIMIT_S:
        raise SystemExit(1)


def _table(path: Path) -> Path:
    """Write rows that all differ in shape, in the tuned schema."""
    kind = "False,torch.bfloat16,torch.bfloat16,False,False"
    with path.open("w") as stream:
        stream.write(",".join(COLUMNS) + "\n")
        for i in range(ROWS):
            shape, us = f"{i % 500 + 1},{(i // 500) * 64 + 64},4096", 5 + i % 977 / 100
            stream.write(f"gfx942,304,{shape},{kind},asm,{i % 40},1,{us},kernel_{i % 40},0.01,1.0,2700.0\n")
    return path


if __name__ == "__main__":
    main()
