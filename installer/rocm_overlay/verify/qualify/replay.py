"""Runs in a worker on overlaid code: one candidate after another on the captured calls; checked, then timed.

A candidate is a set of settings under which one switch is on. Its results are compared with what stock gave when the
call was captured, with stock's expressions on edge cases, and both with a double precision reference.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch

from amd_ops.tolerances import ONE_CALL, WORSE_THAN_STOCK, tolerance

from ..compare import chip, difference
from . import choose
from .calls import Call, Tensors

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EDGES: dict[str, float] = {"times 64": 64.0, "over 64": 1 / 64, "zeros": 0.0}
ROUNDS = 15
_PARTS = 3  # of a sample: their median, so that one hiccup is none of a round
_SAMPLE_S = 0.002


class NotReproducedError(ValueError):
    """A captured call cannot be made again: nothing can be said about what would take its place."""


def check(call: Call, settings: dict[str, str]) -> dict[str, Any]:
    """Compare a candidate with what was captured and on edge cases; return ``{"ok", "reason", "max_rel", "error"}``."""
    import amd_ops

    off = {"stock": ",".join(amd_ops.on.__slots__)}
    worst = {"max_rel": 0.0, "error": 0.0, "stock_error": 0.0}
    inputs: list[tuple[str, Tensors | None]] = [("the captured call", None)]
    inputs += [(name, call.edge(factor)) for name, factor in EDGES.items()]
    for name, tensors in inputs:
        with amd_ops.override(**off):
            stock = call.run(tensors)
            exact = _double(call, tensors)
        if tensors is None:
            reason, _ = _verdict(stock, call.want, exact, _allowed(settings))
            if reason:
                raise NotReproducedError(f"stock's expressions do not give again what was captured: {reason}")
            stock = call.want
        with amd_ops.override(**settings):
            got = call.run(tensors)
        reason, numbers = _verdict(got, stock, exact, _allowed(settings))
        for key, value in numbers.items():
            worst[key] = max(worst[key], value)
        if reason:
            return {"ok": False, "reason": f"{name}: {reason}", **_finite(worst)}
    return {"ok": True, "reason": "", **_finite(worst)}


def _double(call: Call, tensors: Tensors | None) -> list[torch.Tensor] | None:
    """Return the results in double precision; None where stock's own statements mix it with another one."""
    try:
        return call.double(tensors)
    except (RuntimeError, TypeError):
        return None


def _allowed(settings: dict[str, str]) -> dict[torch.dtype, float]:
    """Return what a candidate's results may be off by: more in bfloat16 where aiter's kernels cut."""
    tier = "aiter" if "aiter" in settings.get("tiers", "aiter").split(",") else ""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES}
    return {dtype: tolerance(ONE_CALL, name, tier=tier, arch=chip()).relative for name, dtype in names.items()}


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in numbers.items()}


def _verdict(
    got: list[torch.Tensor],
    stock: list[torch.Tensor],
    exact: list[torch.Tensor] | None,
    limits: dict[torch.dtype, float],
) -> tuple[str, dict[str, float]]:
    numbers = {"max_rel": 0.0, "error": 0.0, "stock_error": 0.0}
    if len(got) != len(stock):
        return f"{len(got)} results, stock has {len(stock)}", numbers
    for place, (a, b) in enumerate(zip(got, stock, strict=True)):
        item = difference("", b, a)
        if item.problem:
            return item.problem, {**numbers, "max_rel": math.inf}
        ours = theirs = 0.0
        if exact is not None:
            ours = difference("", exact[place], a.double()).max_rel
            theirs = difference("", exact[place], b.double()).max_rel
        numbers = {
            "max_rel": max(numbers["max_rel"], item.max_rel),
            "error": max(numbers["error"], ours),
            "stock_error": max(numbers["stock_error"], theirs),
        }
        allowed = limits.get(b.dtype, 0.0)
        if item.max_rel > allowed:
            return f"max rel {item.max_rel:.2e} from stock, allowed {allowed:.0e}", numbers
        if ours > max(WORSE_THAN_STOCK * theirs, allowed / 2):
            return f"error {ours:.2e} from double precision, stock's is {theirs:.2e}", numbers
    return "", numbers


def timing(call: Call, settings: dict[str, str], against: dict[str, str] | None = None) -> dict[str, Any]:
    """Time a candidate beside stock's expressions, stock's again, and ``against``, the tiers that always work.

    Warm and interleaved: every round takes a sample of each, beginning with another one. Returns the samples of every
    arm in us, one per round, their medians, and the candidate's time over stock's.
    """
    import amd_ops

    off = {"stock": ",".join(amd_ops.on.__slots__)}
    cuda = any(t.device.type == "cuda" for t in call.want)
    count = _calibrated(call, off, cuda)
    arms = {choose.STOCK: off, choose.AGAIN: off, choose.CANDIDATE: settings}
    arms |= {} if against is None else {choose.BASE_TIERS: against}
    samples: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    parts = min(_PARTS, count)
    for number in range(ROUNDS):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            with amd_ops.override(**arms[name]):
                call.result()  # binds and warms up
                times = [_seconds(call, count // parts, cuda) / (count // parts) for _ in range(parts)]
            samples[name].append(round(statistics.median(times) * 1e6, 4))
    pairs = zip(samples[choose.CANDIDATE], samples[choose.STOCK], strict=True)
    return {
        "rounds_us": samples,
        "stock_us": statistics.median(samples[choose.STOCK]),
        "candidate_us": statistics.median(samples[choose.CANDIDATE]),
        "ratio": statistics.median(ours / stock for ours, stock in pairs),
        "calls_per_sample": count,
    }


def _calibrated(call: Call, off: dict[str, str], cuda: bool) -> int:
    import amd_ops

    with amd_ops.override(**off):
        call.result()
        once = max(_seconds(call, 3, cuda) / 3, 1e-7)
    return max(1, min(200, int(_SAMPLE_S / once)))


def _seconds(call: Call, count: int, cuda: bool) -> float:
    """On a GPU the wall clock between two barriers, on a CPU the time of this process: neighbours do not count."""
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    given = [call.prepared() for _ in range(count)]
    start = clock()
    for prepared in given:
        call.make(prepared)
    if cuda:
        torch.cuda.synchronize()
    return clock() - start
