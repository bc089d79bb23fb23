"""Numeric check of one tuned row: ``check_row.py TIMES ROW.csv VERDICT.json``, run by the device's interpreter.

A script, never imported by the tool: it needs torch and aiter, which the machine that plans the tuning may not have.
TIMES is how much further than the library's own product that of the row may be from the exact one.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def judge(product: Callable[[Any, Any, Any], Any], row: dict[str, str], device: str, times: float) -> dict[str, Any]:
    """Return ``{ok, error, allowed}`` of ``product(x, weight, bias)`` against a float32 product, on three inputs.

    ``error`` is the largest difference over the root mean square of the exact result; ``allowed`` is ``times`` what
    F.linear itself shows in the same dtype. The inputs: random, random with one huge row, all ones (a kernel that
    leaves out a part of K is off by that part).
    """
    import torch

    dtype = getattr(torch, row["dtype"].removeprefix("torch."))
    m, n, k = int(row["M"]), int(row["N"]), int(row["K"])
    worst, allowed_there = 0.0, 1.0
    for kind in ("random", "spread", "ones"):
        generator = torch.Generator(device).manual_seed(7)
        x = torch.randn(m, k, generator=generator, device=device)
        weight = torch.randn(n, k, generator=generator, device=device) / k**0.5
        bias = torch.randn(n, generator=generator, device=device) if row["bias"] == "True" else None
        if kind == "spread":
            x[0] *= 64
        if kind == "ones":
            x, weight = torch.ones_like(x), torch.full_like(weight, 1 / k**0.5)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = bias.to(dtype) if bias is not None else None
        exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double() if bias is not None else None)
        scale = exact.square().mean().sqrt().item() or 1.0
        result = product(x, weight, bias).double()
        default = torch.nn.functional.linear(x, weight, bias).double()
        if result.shape != exact.shape or not torch.isfinite(result).all():
            return {"ok": False, "error": "not finite or of another shape", "allowed": 0.0}
        error = (result - exact).abs().max().item() / scale
        allowed = times * (default - exact).abs().max().item() / scale + torch.finfo(dtype).eps
        if error / allowed > worst / allowed_there:
            worst, allowed_there = error, allowed
    return {"ok": worst <= allowed_there, "error": worst, "allowed": allowed_there}


def main(arguments: list[str]) -> int:
    times, table, verdict = float(arguments[0]), Path(arguments[1]), Path(arguments[2])
    with table.open(newline="") as stream:
        row = next(csv.DictReader(stream))
    # aiter reads the variable when its module is imported, so it is set first.
    os.environ["AITER_CONFIG_GEMM_BF16"] = str(table.resolve())
    import torch
    from aiter.tuned_gemm import gemm_a16w16

    out = getattr(torch, row["outdtype"].removeprefix("torch."))
    result = judge(lambda x, weight, bias: gemm_a16w16(x, weight, bias=bias, otype=out), row, "cuda", times)
    torch.cuda.synchronize()
    verdict.write_text(json.dumps(result), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
