"""A tuner without a GPU: answers in aiter's schema what a plan says. Driven by FAKE_PLAN (JSON file) and FAKE_LOG."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

COLUMNS = [
    "gfx",
    "cu_num",
    "M",
    "N",
    "K",
    "bias",
    "dtype",
    "outdtype",
    "scaleAB",
    "bpreshuffle",
    "libtype",
    "solidx",
    "splitK",
    "us",
    "kernelName",
    "err_ratio",
    "tflops",
    "bw",
]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-i", type=Path)
    parser.add_argument("-o", type=Path)
    parser.add_argument("--libtype", default="all")
    parser.add_argument("--errRatio", type=float)
    options, _ = parser.parse_known_args()
    plan = json.loads(Path(os.environ["FAKE_PLAN"]).read_text())
    shape = next(csv.DictReader(options.i.open(newline="")))
    name = f"{shape['M']}x{shape['N']}x{shape['K']}"
    with Path(os.environ["FAKE_LOG"]).open("a") as log:
        log.write(f"{name} {options.libtype} {os.environ.get('AITER_CONFIG_GEMM_BF16', '-')}\n")
    todo = {**plan.get("*", {}), **plan.get(name, {})}
    time.sleep(todo.get("sleep", 0))
    if options.libtype == "all" and todo.get("crash") == "abort":
        os.kill(os.getpid(), signal.SIGABRT)
    if options.libtype == "all" and todo.get("crash") == "once":
        mark = Path(os.environ["FAKE_LOG"] + f".{name}")
        if not mark.exists():
            mark.write_text("")
            return 3
    if todo.get("crash") == "default" and options.libtype != "all":
        return 4
    if options.libtype == "all" and todo.get("crash") == "silent":
        return 0
    default = options.libtype != "all"
    row = {
        **shape,
        "gfx": todo.get("gfx", "gfx942"),
        "cu_num": 304,
        "libtype": options.libtype if default else todo.get("libtype", "asm"),
        "solidx": 5,
        "splitK": 1,
        "us": todo.get("default_us", 20.0) if default else todo.get("us", 10.0),
        "kernelName": "native" if default else "_ZN5aiter24bf16gemm_bf16_tn_256x256E",
        "err_ratio": todo.get("err", 0.0),
        "tflops": 1.0,
        "bw": 1.0,
    }
    with options.o.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
