"""PyTorch TunableOp as a tuner: ``-i UNTUNED.csv -o TUNED.csv [--libtype torch]``, run by the device's interpreter.

A script, never imported by the tool. It answers in aiter's schema, so that `overlay tune run` drives it as it drives
aiter's own tuner. With ``--libtype torch`` the default library is timed instead.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

KEY = ("gfx", "cu_num", "M", "N", "K", "bias", "dtype", "outdtype", "scaleAB", "bpreshuffle")
RESULT = ("libtype", "solidx", "splitK", "us", "kernelName", "err_ratio", "tflops", "bw")


def timed(product: Any, iterations: int = 101) -> float:
    """Return the microseconds of one call, over many between two events."""
    import torch

    for _ in range(10):
        product()
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    for _ in range(iterations):
        product()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) * 1000 / iterations


def tune(shape: dict[str, str], plain: bool) -> dict[str, Any]:
    """Return the row of one shape, with TunableOp's own numeric check where this torch can switch it on."""
    import torch

    dtype = getattr(torch, shape["dtype"].removeprefix("torch."))
    m, n, k = int(shape["M"]), int(shape["N"]), int(shape["K"])
    x = torch.randn(m, k, device="cuda", dtype=dtype)
    weight = torch.randn(n, k, device="cuda", dtype=dtype) / k**0.5
    bias = torch.randn(n, device="cuda", dtype=dtype) if shape["bias"] == "True" else None
    solution = "Default"
    if not plain:
        with tempfile.TemporaryDirectory() as folder:
            tunable: Any = torch.cuda.tunable
            tunable.enable(True)
            tunable.tuning_enable(True)
            if hasattr(tunable, "set_numerical_check_tolerances"):  # torch 2.9 and later
                tunable.set_numerical_check_tolerances(True)
            tunable.set_filename(str(Path(folder) / "results.csv"))
            torch.nn.functional.linear(x, weight, bias)
            # (operation, problem, solution, milliseconds); other shapes may have been tuned on the way.
            found = [entry for entry in tunable.get_results() if f"tn_{n}_{m}_{k}" in entry[1]]
            tunable.tuning_enable(False)
        if found:
            solution = found[-1][2]
    us = timed(lambda: torch.nn.functional.linear(x, weight, bias))
    match = re.fullmatch(r"Gemm_Hipblaslt_(?:TN_)?(\d+)", solution)
    properties: Any = torch.cuda.get_device_properties(0)
    return {
        **shape,
        "gfx": getattr(properties, "gcnArchName", "").split(":")[0],
        "cu_num": properties.multi_processor_count,
        "libtype": "hipblaslt" if match else "torch",
        "solidx": match[1] if match else 0,
        "splitK": 0,
        "us": round(us, 4),
        "kernelName": solution if match else "native",
        "err_ratio": 0.0,
        "tflops": round(2 * m * n * k / us / 1e6, 2),
        "bw": round(2 * (m * k + n * k + m * n) / us / 1e3, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-i", dest="asked", type=Path, required=True)
    parser.add_argument("-o", dest="answer", type=Path, required=True)
    parser.add_argument("--libtype", default="all")
    parser.add_argument("--errRatio", type=float, default=0.05)
    options = parser.parse_args()
    with options.asked.open(newline="") as stream:
        shapes = list(csv.DictReader(stream))
    with options.answer.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, (*KEY, *RESULT), lineterminator="\n")
        writer.writeheader()
        for shape in shapes:
            writer.writerow(tune({"bpreshuffle": "False", **shape}, options.libtype == "torch"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
