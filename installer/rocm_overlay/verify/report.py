"""The outcome for people (a table) and for programs (one JSON object)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from .. import console
from ..shared import tolerances
from .workers import SITES, Results, RunResult, Setup

SCHEMA = "amd-overlay.verify/1"
STATUSES = ("ok", "deviates", "crashed", "declined", "no-effect")


def exit_code(results: Results) -> int:
    """0 when every run that could be made is within tolerance, else 1."""
    return 1 if any(run.status in ("deviates", "crashed") for run in results.runs) else 0


def as_json(setup: Setup, results: Results, seconds: float) -> dict[str, Any]:
    """Return the report as plain values."""
    return {
        "schema": SCHEMA,
        "ok": exit_code(results) == 0,
        "exit_code": exit_code(results),
        "model": str(setup.model),
        **console.facts(setup, "dtype seed max_new_tokens"),
        **console.facts(results, "device not_compared nan_weights"),
        "interpreter": setup.interpreter.as_json(),
        "sources": [source.as_json() for source in setup.sources],
        "runs": [run.as_json() for run in results.runs],
        "tolerances": tolerances().as_json(),
        "seconds": seconds,
        "reused": results.reused and results.reused.as_json(),
    }


def joined(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the reports of several dtypes as one: each run and each case that was left out names its own."""
    first = reports[0]
    if len(reports) == 1:
        return first
    reused = [one["reused"] for one in reports if one["reused"]]
    return {
        **first,
        "ok": all(one["ok"] for one in reports),
        "exit_code": max(one["exit_code"] for one in reports),
        "dtype": ",".join(one["dtype"] for one in reports),
        **{
            name: [{**item, "dtype": one["dtype"]} for one in reports for item in one[name]]
            for name in ("runs", "not_compared")
        },
        "nan_weights": sorted({name for one in reports for name in one["nan_weights"]}),
        "seconds": sum(one["seconds"] for one in reports),
        "reused": {
            "parts": sum(one["parts"] for one in reused),
            "of": sum(one["of"] for one in reused),
            "newest": max(one["newest"] for one in reused),
        }
        if reused
        else None,
    }


def show(setup: Setup, results: Results, seconds: float) -> None:
    """Print the verdict, one row per run, then every deviation and everything that was not compared.

    What was compared with what, and which ops ran where, are details.
    """
    counts = {status: sum(run.status == status for run in results.runs) for status in STATUSES}
    counted = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.show(f"{counted}; {results.compared} cases each, {console.duration(seconds)}")
    if results.reused:
        console.show(results.reused.text("tiers"))
    heading = list(_heading(setup, results))
    for name, text in (
        heading if console.verbose() else (one for one in heading if one[0] in ("model", "weights", "amd_ops"))
    ):
        console.show(f"{name:<12} {text}")
    header = ("tier", "toggles", "result", "same bits", "max rel", "allowed", "tokens")
    console.table(header, [_row(run) for run in results.runs])
    told = [run for run in results.runs if console.verbose() or run.status != "ok"]
    for why, runs in _grouped(told).items():
        console.show(f"{', '.join(runs)}: {why}")
    console.show(*(line for run in results.runs for line in _details(run)))
    for item in results.not_compared:
        console.show(f"not compared: {item['implementation']} {item['case']}: stock itself fails: {item['error']}")


def _grouped(runs: list[RunResult]) -> dict[str, list[str]]:
    """Return runs by what is said of them: what the tier ran, or why not."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(_why(run), []).append(run.run.id)
    return found


def _heading(setup: Setup, results: Results) -> Iterator[tuple[str, str]]:
    found = setup.interpreter
    yield "model", str(setup.model)
    yield "interpreter", f"{found.executable} (torch {found.torch}, transformers {found.transformers})"
    for source in setup.sources:
        texts = f"stock {source.stock_sha256[:12]} against overlay {source.overlay_sha256[:12]}"
        yield "source", f"{source.path}: {texts}; installed is {source.installed}"
    if results.nan_weights:
        yield "weights", f"NaN in {', '.join(results.nan_weights[:5])}: outputs are compared NaN for NaN"
    if setup.compare is not None:
        yield "reference", f"{setup.compare}, saved elsewhere: no bits are asked for, also with toggles off"
    yield "device", f"{results.device}, {setup.dtype}, attention {' and '.join(setup.implementations)}"
    if found.amd_ops is None:
        yield "amd_ops", "not installed in that interpreter: the one of this program was used"


def _row(run: RunResult) -> tuple[str, ...]:
    measured = [case for case in run.cases if case["error"] is None]
    if run.status == "declined" or not measured:
        return run.run.tier, run.run.label, run.status, "", "", "", ""
    same = sum(case["bitwise"] for case in measured)
    worst = max(measured, key=lambda case: _number(case["worst"]["max_rel"]))
    return (
        run.run.tier,
        run.run.label,
        run.status,
        f"{same} of {len(measured)}",
        f"{_number(worst['worst']['max_rel']):.1e}",
        f"{worst['allowed_rel']:.0e}" if worst["allowed_rel"] else "0",
        _tokens(measured),
    )


def _number(value: float | None) -> float:
    """Undo what JSON needs: None stands for a number that is not finite."""
    return math.inf if value is None else value


def _tokens(cases: list[dict[str, Any]]) -> str:
    differing = [item for case in cases for item in _items(case) if item["first_token"]]
    if not differing:
        return "equal"
    ties = sum(item["near_tie"] for item in differing)
    return f"differ in {len(differing)}" + (f" ({ties} near ties)" if ties else "")


def _items(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [case["tokens"]] if case.get("tokens") else []


def _why(run: RunResult) -> str:
    """Say what the run's tier ran, and why it did not run the rest."""
    if run.run.tier == "off":
        return "stock expressions"
    ran = [op for op, tiers in run.ran.items() if run.run.tier in tiers or not tiers.keys().isdisjoint(SITES)]
    ops_by_reason: dict[str, list[str]] = {}
    for item in run.declined:
        ops = ops_by_reason.setdefault(item["reason"], [])
        if item["op"] not in ops:
            ops.append(item["op"])
    reasons = [f"{', '.join(ops)}: {reason}" for reason, ops in ops_by_reason.items()]
    if run.status == "declined":
        return "; ".join(reasons) or "no op of these toggles has this tier"
    return "; ".join([", ".join(ran) or "nothing", *(f"not {reason}" for reason in reasons)])


def _details(run: RunResult) -> Iterator[str]:
    if run.culprit is not None:
        yield f"culprit: {run.run.id}: {culprit_text(run.culprit)}"
    for case in run.deviating:
        where = f"deviates: {run.run.id}: {case['implementation']} {case['case']}"
        if case["error"]:
            yield f"{where}: {case['error']}"
        else:
            yield from (f"{where}: {_deviation(item, case)}" for item in case["deviating"])
    if run.status == "crashed":
        yield f"crashed: {run.run.id}: {run.message}"


def culprit_text(found: dict[str, Any]) -> str:
    """Say in one line which op, tier and layer a bisect named."""
    parts = []
    for item in found["switches"]:
        name = item["op"] or " or ".join(item["functions"]) or item["switch"]
        tier = f" on tier {item['tier']}" if item["tier"] else ""
        parts.append(f"{name}{tier} (switch {item['switch']})")
    if found["layer"]:
        parts.append(f"first seen in {found['layer']['path']} ({found['layer']['class']})")
    return "; ".join([*parts, *([found["note"]] if found["note"] else [])])


def _deviation(item: dict[str, Any], case: dict[str, Any]) -> str:
    if item["problem"]:
        return f"{item['name']}: {item['problem']}"
    if item["first_token"]:
        row, position = item["first_token"]
        return f"{item['name']}: first differing token in row {row} at position {position}"
    return (
        f"{item['name']}: max rel {_number(item['max_rel']):.2e} (allowed {case['allowed_rel']:.0e}), "
        f"max abs {_number(item['max_abs']):.2e}, cosine {item['cosine']:.8f}"
        + (f", KL {item['kl']:.1e}" if item.get("kl") is not None else "")
    )
