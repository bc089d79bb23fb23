"""Runs in a worker on overlaid code: one candidate after another on the captured calls; checked, then timed.

A candidate is a set of settings under which one switch is on. Its results are compared with what stock gave when the
call was captured, with stock's expressions on edge cases, and both with a double precision reference.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..compare import difference
from .codec import decode, float_tensors

# Of one call, relative to the largest value: several roundings of the dtype, not those of a whole model.
ALLOWED = {torch.float64: 1e-6, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
WORSE = 4.0  # a result may be this much further from the double precision reference than stock's own
EDGES: dict[str, float] = {"times 64": 64.0, "over 64": 1 / 64, "zeros": 0.0}
ROUNDS = 15
_RANKS = (3, 11)  # order statistics of 15 that hold the median with more than 96 %
_SAMPLE_S = 0.002


class Call:
    """One captured call, ready to be made again on this device."""

    def __init__(self, model: Any, module_name: str, file: Path, device: torch.device) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file

        with safe_open(file, "pt") as opened:
            layout = json.loads(opened.metadata()["call"])
        tensors = {name: value.to(device) for name, value in load_file(file).items()}
        self.place: str = layout["place"]
        self.args, self.kwargs = decode(layout["arguments"], tensors)
        self.want = float_tensors(decode(layout["result"], tensors))
        self.function: Any = None
        self.module: Any = None
        owner, _, method = self.place.partition(".")
        if method:
            self.module = _restored(model, layout["path"], file.parent / "state", device)
            self.method = method
        else:
            self.home, self.name = sys.modules[module_name], owner

    def run(self, args: Any = None) -> list[torch.Tensor]:
        """Make the call; with ``args`` in place of the captured positional and keyword arguments."""
        return float_tensors(self.result(args))

    def result(self, args: Any = None) -> Any:
        """Make the call and return what it returns."""
        given, named = (self.args, self.kwargs) if args is None else args
        if self.module is None:
            return getattr(self.home, self.name)(*given, **named)
        return getattr(self.module, self.method)(*given, **named)

    def double(self, args: Any = None) -> list[torch.Tensor]:
        """Make the call in double precision."""
        given = _map(copy.copy((self.args, self.kwargs) if args is None else args), lambda t: t.double())
        if self.module is None:
            return self.run(given)
        kept, self.module = self.module, copy.deepcopy(self.module).double()
        try:
            return self.run(given)
        finally:
            self.module = kept

    def edge(self, factor: float) -> Any:
        """Return the arguments with the first float tensor scaled."""
        done = False

        def scaled(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal done
            if done:
                return tensor
            done = True
            return tensor * factor

        return _map((self.args, self.kwargs), scaled)


def _map(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_map(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if hasattr(value, "keys") and hasattr(value, "values") and hasattr(value, "update"):
        return type(value)(_map(value.keys, change), _map(value.values, change))
    return value


def _restored(model: Any, path: str, folder: Path, device: torch.device) -> Any:
    """Return the submodule of a model on meta device with its captured weights put in."""
    from safetensors.torch import load_file

    module = model.get_submodule(path)
    for name, value in load_file(folder / f"{path}.safetensors").items():
        owner_path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_path)
        if leaf in owner._parameters:
            owner._parameters[leaf] = torch.nn.Parameter(value.to(device), requires_grad=False)
        else:
            owner._buffers[leaf] = value.to(device)
    return module.eval()


def check(call: Call, settings: dict[str, str]) -> dict[str, Any]:
    """Compare a candidate with what was captured and on edge cases; return ``{"ok", "reason", "max_rel", "error"}``."""
    import amd_ops

    off = {"stock": ",".join(amd_ops.on.__slots__)}
    worst = {"max_rel": 0.0, "error": 0.0, "stock_error": 0.0}
    inputs: list[tuple[str, Any, list[torch.Tensor] | None]] = [("the captured call", None, call.want)]
    inputs += [(name, call.edge(factor), None) for name, factor in EDGES.items()]
    for name, args, want in inputs:
        with amd_ops.override(**off):
            stock = call.run(args) if want is None else want
            exact = call.double(args)
        with amd_ops.override(**settings):
            got = call.run(args)
        reason, numbers = _verdict(got, stock, exact)
        for key, value in numbers.items():
            worst[key] = max(worst[key], value)
        if reason:
            return {"ok": False, "reason": f"{name}: {reason}", **_finite(worst)}
    return {"ok": True, "reason": "", **_finite(worst)}


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in numbers.items()}


def _verdict(
    got: list[torch.Tensor], stock: list[torch.Tensor], exact: list[torch.Tensor]
) -> tuple[str, dict[str, float]]:
    numbers = {"max_rel": 0.0, "error": 0.0, "stock_error": 0.0}
    if len(got) != len(stock):
        return f"{len(got)} results, stock has {len(stock)}", numbers
    for a, b, reference in zip(got, stock, exact, strict=False):
        item = difference("", b, a)
        if item.problem:
            return item.problem, {**numbers, "max_rel": math.inf}
        ours = difference("", reference, a.double()).max_rel
        theirs = difference("", reference, b.double()).max_rel
        numbers = {
            "max_rel": max(numbers["max_rel"], item.max_rel),
            "error": max(numbers["error"], ours),
            "stock_error": max(numbers["stock_error"], theirs),
        }
        allowed = ALLOWED.get(b.dtype, 0.0)
        if item.max_rel > allowed:
            return f"max rel {item.max_rel:.2e} from stock, allowed {allowed:.0e}", numbers
        if ours > max(WORSE * theirs, allowed / 2):
            return f"error {ours:.2e} from double precision, stock's is {theirs:.2e}", numbers
    return "", numbers


def timing(call: Call, settings: dict[str, str]) -> dict[str, Any]:
    """Time a candidate against stock's expressions, warm, interleaved: medians in us and the interval of the ratio."""
    import amd_ops

    off = {"stock": ",".join(amd_ops.on.__slots__)}
    cuda = any(t.device.type == "cuda" for t in call.want)
    count = _calibrated(call, off, cuda)
    samples: dict[str, list[float]] = {"stock": [], "candidate": []}
    for _ in range(ROUNDS):
        for name, chosen in (("stock", off), ("candidate", settings)):
            with amd_ops.override(**chosen):
                call.result()  # binds and warms up
                samples[name].append(_seconds(call, count, cuda) / count)
    ratios = sorted(b / a for a, b in zip(samples["stock"], samples["candidate"], strict=True))
    return {
        "stock_us": sorted(samples["stock"])[ROUNDS // 2] * 1e6,
        "candidate_us": sorted(samples["candidate"])[ROUNDS // 2] * 1e6,
        "ratio": ratios[ROUNDS // 2],
        "interval": [ratios[_RANKS[0]], ratios[_RANKS[1]]],
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
    start = clock()
    for _ in range(count):
        call.result()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start
