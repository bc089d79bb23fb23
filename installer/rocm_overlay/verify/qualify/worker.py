"""The worker processes of a qualification: ``python -m rocm_overlay.verify.qualify.worker JOB FD``.

``job["do"]``: inspect (supply and demand), capture (stock build), replay (candidates) or warmup (one call each).
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
    tasks = {"inspect": inspect, "capture": capture, "replay": replay, "warmup": warmup}
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


def capture(job: dict[str, Any], emit: Emit) -> None:
    """Load the model, run a short left-padded generate (or one forward), keep what the points were given and gave."""
    import torch

    from rocm_overlay.verify.inputs import Inputs, kind_of
    from rocm_overlay.verify.models import load, nan_weights
    from rocm_overlay.verify.other_kinds import arguments
    from rocm_overlay.verify.qualify.capture import Recorder, watching

    model = load(job["model"], job["dtype"], seeded=job["seeded"], seed=job["seed"])
    emit("loaded", nan_weights=nan_weights(model))
    inputs = Inputs.for_model(model, seed=job["seed"])
    recorder = Recorder(Path(job["captures"]), job["cap"], emit)
    with torch.no_grad(), watching(model, job["places"], recorder):
        if kind_of(model) == "causal":
            mask = inputs.mask(left=True)
            model.generate(inputs.ids, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        else:
            model(**arguments(model, inputs))
    emit("captured-all", bytes=recorder.used)


def _calls(job: dict[str, Any], place: dict[str, Any], model: Any) -> list[Any]:
    import torch

    from rocm_overlay.verify.qualify.replay import Call

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = sorted(Path(job["captures"]).glob(f"{place['qualname']}.*.safetensors"))
    return [Call(model, place["module"], file, device) for file in files]


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
    from amd_ops import dispatch
    from rocm_overlay.verify.qualify.replay import check, timing

    warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
    model = _skeleton(job)
    with torch.no_grad():
        for candidate in job["candidates"]:
            emit("begin", id=candidate["id"])
            calls = _calls(job, candidate["place"], model)
            if not calls:
                emit("result", id=candidate["id"], status="not captured", reason="no call was captured")
                continue
            amd_ops.reset_counters()
            start = time.perf_counter()
            try:
                with amd_ops.override(**candidate["settings"]):
                    for call in calls:
                        call.result()
                first = time.perf_counter() - start
                emit("first", id=candidate["id"], seconds=first)
                rows = amd_ops.report().as_dict()["ops"]
                verdicts = [check(call, candidate["settings"]) for call in calls]
            except Exception as error:  # noqa: BLE001 - a candidate that raises is a result
                emit("result", id=candidate["id"], status="raised", reason=f"{type(error).__name__}: {error}"[:400])
                continue
            ran = {
                row["op"]: [tier["tier"] for tier in row["tiers"] if tier["calls"]]
                for row in rows
                if isinstance(dispatch.ops[row["op"]], dispatch.Op)
            }
            sites = {row["op"]: row["tiers"] for row in rows if row["op"] not in ran}
            wanted = candidate.get("tier")
            told = _declines(rows)
            if wanted and wanted not in ran.get(candidate["op"], []):
                emit("result", id=candidate["id"], status="declined", reason=told, ran=ran)
                continue
            bad = next((verdict for verdict in verdicts if not verdict["ok"]), None)
            common = {
                "id": candidate["id"], "ran": ran, "first_call_s": first, "declined": told,
                "fell_back": _fell_back(sites),
            }  # fmt: skip
            if bad is not None:
                emit("result", status="wrong", **{**bad, **common})
                continue
            worst = max(verdicts, key=lambda verdict: verdict["max_rel"] or 0.0)
            times = [timing(call, candidate["settings"]) for call in calls] if candidate["time"] else []
            emit("result", status="valid", **{**worst, **common}, timings=times)


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


def warmup(job: dict[str, Any], emit: Emit) -> None:
    """Make every captured call once under the profile and tell how long each op's first call took."""
    import torch

    import amd_ops

    model = _skeleton(job)
    with torch.no_grad(), amd_ops.override(**job["settings"]):
        for place in job["places"]:
            emit("begin", id=place["qualname"])
            start = time.perf_counter()
            calls = _calls(job, place, model)
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
