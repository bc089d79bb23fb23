"""The worker's part of `overlay profile`: some prefills and decode steps under torch's profiler, each by itself.

Each op of ours becomes a region named ``amd_ops::<op>``. On a GPU the time of kernels counts, elsewhere that of ops on
the CPU. Coverage is the share of that time which lies inside our regions, TileGym's figure: what is left over shows
where the next recipe or kernel is wanted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from . import launches, measure

OURS = "amd_ops::"
TOP = 12


def run(job: dict[str, Any], emit: measure.Emit) -> None:
    """Profile both phases and emit their summaries; the traces are files that Perfetto and chrome://tracing read."""
    model = measure.load(job)
    work = job["cell"]["work"]
    vocab = model.config.get_text_config().vocab_size
    ids = measure.token_ids(vocab, work["batch"], work["isl"], job["seed"]).to(model.device)
    with torch.inference_mode():
        for _ in range(job["warmup"] + 1):
            _step(model, ids, work, "decode")()
        for phase in ("prefill", "decode"):
            path = Path(job["trace"]) / f"{job['cell']['build']}.{phase}.json"
            steps = [_profiled(_step(model, ids, work, phase)) for _ in range(job["runs"])]
            middle = sorted(steps, key=lambda step: step.total_us)[len(steps) // 2]
            path.parent.mkdir(parents=True, exist_ok=True)
            middle.profile.export_chrome_trace(str(path))
            covered = statistics.median(step.summary["coverage"] for step in steps)
            totals = [step.total_us for step in steps]
            told = {**middle.summary, "coverage": covered, "totals_us": totals}
            emit("phase", phase=phase, trace=path.name, **told)


def _step(model: Any, ids: torch.Tensor, work: dict[str, Any], phase: str) -> Callable[[], object]:
    """Return the step to profile, with everything before it done."""
    cache = measure.cache_for(model, work)
    first = measure.positions(work, 0, work["isl"])

    def prefill() -> object:
        return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **first)

    if phase == "prefill":
        return prefill
    prefill()
    one = measure.positions(work, work["isl"], 1)
    return lambda: model(ids[:, :1], past_key_values=cache, use_cache=True, **one)


@dataclass(frozen=True)
class Step:
    """One step under the profiler. Of several the one in the middle is shown, with the times of all and the median of
    their coverages.
    """

    profile: Any
    summary: dict[str, Any]

    @property
    def total_us(self) -> float:
        """The time of all its ops."""
        return float(self.summary["total_us"])


def _profiled(step: Callable[[], object]) -> Step:
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with launches.wrapped_ops(_region), profile(activities=activities) as found:
        step()
        measure.sync()
    return Step(found, summary(list(found.events()), on_gpu))


def summary(events: list[Any], on_gpu: bool) -> dict[str, Any]:
    """Share of time inside our regions, and the ops outside of them that take most; times in microseconds."""
    total = inside = 0.0
    outside: dict[str, list[float]] = {}
    for event in events:
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if spent <= 0:
            continue
        total += spent
        if _in_ours(event):
            inside += spent
        else:
            row = outside.setdefault(event.name, [0.0, 0])
            row[0] += spent
            row[1] += 1
    ranked = sorted(outside.items(), key=lambda item: -item[1][0])[:TOP]
    return {
        "clock": "device" if on_gpu else "cpu",
        "total_us": total,
        "ours_us": inside,
        "coverage": inside / total if total else 0.0,
        "gaps": [{"op": name, "us": us, "calls": int(calls)} for name, (us, calls) in ranked],
    }


def _in_ours(event: Any) -> bool:
    while event is not None:
        if event.name.startswith(OURS):
            return True
        event = event.cpu_parent
    return False


def _region(op: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def inside(*args: Any) -> Any:
        with record_function(f"{OURS}{op}"):
            return call(*args)

    return inside
