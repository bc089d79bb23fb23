"""The worker processes of a qualification: ``python -m rocm_overlay.verify.qualify.worker JOB FD``.

``job["do"]``: inspect (supply and demand), capture (stock build), replay (candidates), warmup (one call each) or
whole (the model under several settings).
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

from rocm_overlay.worker import Emit, end, serving


def main(arguments: list[str]) -> None:
    """Run the job."""
    tasks = {"inspect": inspect, "capture": capture, "replay": replay, "warmup": warmup, "whole": whole}
    with serving(arguments) as (job, emit):
        try:
            tasks[job["do"]](job, emit)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            emit("failed", message=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:400]}")


def inspect(job: dict[str, Any], emit: Emit) -> None:
    """Tell what this machine has: every op and tier with its verdict, the toggles behind each switch and op."""
    import torch

    import amd_ops
    from amd_ops import dispatch, profile, toggles

    families = {name.lower(): name for name in toggles.FAMILIES}
    switches: dict[str, list[str]] = {}
    ops: dict[str, list[str]] = {}
    for keyword, family in families.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with amd_ops.override(**dict.fromkeys(families, 0)), amd_ops.override(**{keyword: 1}) as settings:
                for switch in amd_ops.on.__slots__:
                    if getattr(amd_ops.on, switch):
                        switches.setdefault(switch, []).append(family)
                for name, op in dispatch.ops.items():
                    if isinstance(op, dispatch.Op) and any(tier.wanted(settings) for tier in op.tiers):
                        ops.setdefault(name, []).append(family)
    _of_several(families, switches)
    wanted = {name.lower(): 1 for name in {family for found in switches.values() for family in found}}
    with amd_ops.override(**wanted) as settings:
        supply = [
            {"op": name, "tier": tier.name, "reason": getattr(op.offered(tier, settings), "reason", "")}
            for name, op in dispatch.ops.items()
            if isinstance(op, dispatch.Op)
            for tier in op.tiers
        ]
    machine = profile.machine()
    emit(
        "inspected", supply=supply, switches=switches, ops=ops, machine=machine, threads=torch.get_num_threads(),
        python=sys.version.split()[0], default_profile=str(profile.default_path()),
    )  # fmt: skip


def _of_several(families: dict[str, str], switches: dict[str, list[str]]) -> None:
    """Add the switches that want several toggles at once: each toggle without which they are off."""
    import amd_ops

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for switch in (name for name in amd_ops.on.__slots__ if name not in switches):
            found = []
            for keyword, family in families.items():
                with amd_ops.override(**{name: int(name != keyword) for name in families}):
                    if not getattr(amd_ops.on, switch):
                        found.append(family)
            if len(found) < len(families):
                switches[switch] = found


def capture(job: dict[str, Any], emit: Emit) -> None:
    """Load the model, run it as it is used (a short generate, or a forward), keep what points were given and gave."""
    import torch

    from rocm_overlay.verify.models import load, nan_weights
    from rocm_overlay.verify.qualify.capture import Recorder, watching
    from rocm_overlay.verify.qualify.runs import runs_of

    model = load(job["model"], job["dtype"], seeded=job["seeded"], seed=job["seed"])
    emit("loaded", nan_weights=nan_weights(model))
    recorder = Recorder(Path(job["captures"]), job["cap"], emit)
    failed = []
    with torch.no_grad(), watching(model, job["places"], recorder):
        for run in runs_of(model, job["seed"], job.get("inputs")):
            try:
                run.make()
            except Exception as error:  # noqa: BLE001 - stock's own code: what it cannot run here is told, by name
                failed.append(run.name)
                emit("run-failed", run=run.name, reason=f"{type(error).__name__}: {_first_line(error)}")
            else:
                emit("run-made", run=run.name)
    emit("captured-all", bytes=recorder.used, calls=sum(recorder.saved.values()))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


def _calls(job: dict[str, Any], place: dict[str, Any], weights: Any) -> list[Any]:
    from rocm_overlay.verify.qualify.calls import Call
    from rocm_overlay.verify.qualify.capture import key_of

    files = sorted(Path(job["captures"]).glob(f"{key_of(place)}.*.safetensors"))
    return [Call(weights, file) for file in files]


def _weights(job: dict[str, Any]) -> Any:
    import torch

    from rocm_overlay.verify.qualify.calls import Weights

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Weights(_skeleton(job), Path(job["captures"]), device)


def _skeleton(job: dict[str, Any]) -> Any:
    """Build the model without weights: the modules of a capture bring their own."""
    import torch
    import transformers

    from rocm_overlay.verify.models import model_class

    config = transformers.AutoConfig.from_pretrained(job["model"], local_files_only=True)
    with torch.device("meta"):
        cls = model_class(config)
        return cls._from_config(config, dtype=getattr(torch, job["dtype"])).eval()


def replay(job: dict[str, Any], emit: Emit) -> None:
    """Check and time candidates, each told before it starts so that a process that dies names its killer."""
    import torch

    import amd_ops
    from rocm_overlay.verify.qualify.replay import NotReproducedError

    warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
    _check_machine(job.get("machine"))
    weights = _weights(job)
    with torch.no_grad():
        for candidate in job["candidates"]:
            emit("begin", id=candidate["id"])
            try:
                result = _tried(job, candidate, weights, emit)
            except NotReproducedError as error:
                result = {"status": "not captured", "reason": str(error)}
            except Exception as error:  # noqa: BLE001 - a candidate that raises is a result
                result = {"status": "raised", "reason": f"{type(error).__name__}: {error}"[:400]}
            emit("result", **{"id": candidate["id"], **result})


def _check_machine(wanted: dict[str, Any] | None) -> None:
    """Raise RuntimeError where something was qualified on another device or stack than this process has."""
    from amd_ops import profile
    from amd_ops.toggle_rules import REDO

    for name, here in profile.machine().items():
        if wanted is not None and wanted.get(name) != here:
            raise RuntimeError(f"stale: qualified with {name} {wanted.get(name)!r}, here it is {here!r}; {REDO}")


def _tried(job: dict[str, Any], candidate: dict[str, Any], weights: Any, emit: Emit) -> dict[str, Any]:
    """Return a candidate's result. Raises what the candidate raises, and NotReproducedError."""
    import amd_ops
    from amd_ops import dispatch
    from rocm_overlay.verify.qualify.replay import check, timing

    amd_ops.reset_counters()
    start = time.perf_counter()
    calls = _calls(job, candidate["place"], weights)
    if not calls:
        return {"status": "not captured", "reason": "no call was captured"}
    with amd_ops.override(**candidate["settings"]):
        for call in calls:
            call.result()
    first = time.perf_counter() - start
    emit("first", id=candidate["id"], seconds=first)
    rows = amd_ops.report().as_dict()["ops"]
    verdicts = []
    for call in calls:
        verdicts.append(check(call, candidate["settings"]))
        emit("checked", id=candidate["id"])  # a limit of silence is one of a call, however many a place has
    ran = {
        row["op"]: [tier["tier"] for tier in row["tiers"] if tier["calls"]]
        for row in rows
        if isinstance(dispatch.ops[row["op"]], dispatch.Op)
    }
    wanted, told = candidate.get("tier"), _declines(rows)
    if wanted and wanted not in ran.get(candidate["op"], []):
        return {"status": "declined", "reason": told, "ran": ran}
    if not wanted and not _any_of_ours(rows):
        return {"status": "no effect", "reason": told, "ran": ran}
    sites = {row["op"]: row["tiers"] for row in rows if row["op"] not in ran}
    common = {"ran": ran, "first_call_s": first, "declined": told, "fell_back": _fell_back(sites)}
    bad = next((verdict for verdict in verdicts if not verdict["ok"]), None)
    if bad is not None:
        return {"status": "wrong", **bad, **common}
    worst = max(verdicts, key=lambda verdict: verdict["max_rel"] or 0.0)
    times = []
    for call in _to_time(calls) if candidate["time"] else []:
        times.append(timing(call, candidate["settings"], candidate.get("against")))
        emit("timed", id=candidate["id"])
    return {"status": "valid", **worst, **common, "timings": times}


def _to_time(calls: list[Any]) -> list[Any]:
    """Return the first call of each size and kind of cache: padding and windows are checked, and cost much the same."""
    found = {call.timed_as: call for call in reversed(calls)}
    return list(reversed(found.values()))


def _any_of_ours(rows: list[dict[str, Any]]) -> bool:
    return any(tier["calls"] for row in rows for tier in row["tiers"] if tier["tier"] != "stock")


def _declines(rows: list[dict[str, Any]]) -> str:
    reasons = {
        f"{row['op']} {tier['tier']}: {entry['reason']}"
        for row in rows
        for tier in row["tiers"]
        for entry in tier["declined"]
        if "AMD_OPS" not in entry["reason"]
    }
    return "; ".join(sorted(reasons))[:400]


def _fell_back(sites: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [name for name, tiers in sites.items() for tier in tiers if tier["tier"] == "stock" and tier["calls"]]


def whole(job: dict[str, Any], emit: Emit) -> None:
    """Run the whole model under the settings of every arm, against stock's expressions."""
    import torch

    import amd_ops
    from rocm_overlay.verify.models import load
    from rocm_overlay.verify.qualify.whole import compare

    warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
    model = load(job["model"], job["dtype"], seeded=job["seeded"], seed=job["seed"])
    emit("loaded")
    with torch.inference_mode():
        emit("whole", arms=compare(model, job["arms"], job["seed"], job["rounds"], emit))


def warmup(job: dict[str, Any], emit: Emit) -> None:
    """Make every captured call once under the profile and tell how long each op's first call took."""
    import torch

    import amd_ops

    weights = _weights(job)
    with torch.no_grad(), amd_ops.override(**job["settings"]):
        for place in job["places"]:
            emit("begin", id=place["qualname"])
            start = time.perf_counter()
            calls = _calls(job, place, weights)
            for call in calls:
                call.result()
            emit("warmed", place=place["qualname"], calls=len(calls), seconds=time.perf_counter() - start)
        rows = amd_ops.report().as_dict()["ops"]
    first = [
        {"op": row["op"], "tier": tier["tier"], "first_call_s": tier["first_call_s"], "calls": tier["calls"]}
        for row in rows
        for tier in row["tiers"]
        if tier["calls"]
    ]
    emit("warm", ops=first)


if __name__ == "__main__":
    end(main)
