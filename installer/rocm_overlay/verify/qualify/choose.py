"""From results to a profile: which op may use which tier, and which switch stays at stock."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from ...statistics import Verdict, faster, log_ratios

BASE = ("torch", "eager")
STOCK, AGAIN, CANDIDATE, BASE_TIERS = "stock", "stock again", "candidate", "base tiers"
"""What is timed side by side: stock's expressions, the same again, a candidate, and where it is a tier, its place with
the tiers that always work."""
_COMPARISONS = 3  # of the whole model: a plan, plain toggles, stock
PLAN = "plan"
FOLLOWS = {"packed": ("qkv", "gated_mlp")}
"""Switches without a place of their own in a model's text, which stand and fall with others."""
UNUSED = "not used by this model"


@dataclass
class Choice:
    """What will be enabled: tiers by op, and the switches that are left to stock with the reason."""

    op_tiers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stock: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The value of AMD_OPS_OP_TIERS."""
        return ";".join(f"{op}={','.join(tiers)}" for op, tiers in sorted(self.op_tiers.items()))


def ratio(result: dict[str, Any]) -> float:
    """Return a result's time over that of stock, the mean of its calls; infinite where nothing was timed."""
    times = result.get("timings") or []
    return sum(item["ratio"] for item in times) / len(times) if times else float("inf")


def comparisons(results: dict[str, dict[str, Any]]) -> int:
    """Return how many comparisons decide about a profile: all calls that are timed, and those of the whole model.

    Places are timed once more under the tiers that were chosen: as often as with the tiers that always work.
    """
    counted = [result for name, result in results.items() if "@chosen:" not in name]
    return sum(len(result.get("timings") or ()) for result in counted) + _COMPARISONS


def verdicts(result: dict[str, Any], tests: int, over: str = STOCK) -> list[Verdict]:
    """Judge every timed call of a result over another arm; over stock where that arm was not timed."""
    found = []
    for item in result.get("timings") or ():
        rounds = {arm: [[value] for value in values] for arm, values in item["rounds_us"].items()}
        noise = log_ratios(rounds[AGAIN], rounds[STOCK])
        found.append(faster(rounds[CANDIDATE], rounds.get(over, rounds[STOCK]), noise, tests=tests))
    return found


def _gains(found: list[Verdict]) -> bool:
    """True when no call is slower beyond the noise, and one is faster beyond it."""
    outcomes = {verdict.outcome for verdict in found}
    return "faster" in outcomes and "slower" not in outcomes


def is_faster(result: dict[str, Any], tests: int) -> bool:
    """True when it is valid and gains over stock; ``tests`` comparisons are made for the profile in all."""
    return result.get("status") == "valid" and _gains(verdicts(result, tests))


def choose_tiers(ops: list[str], candidates: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> Choice:
    """Give every op the best tier that is valid wherever it was tried and gains over the tiers that always work."""
    choice = Choice(dict.fromkeys(ops, BASE))
    tests = comparisons(results)
    for op in ops:
        best = math.inf
        for tier in dict.fromkeys(item["tier"] for item in candidates if item["op"] == op):
            tried = [results[item["id"]] for item in candidates if item["op"] == op and item["tier"] == tier]
            found = [result for result in tried if result["status"] != "declined"]
            if any(result["status"] != "valid" for result in found):
                continue
            judged = [verdict for result in found for verdict in verdicts(result, tests, BASE_TIERS)]
            ratios = [verdict.ratio.value for verdict in judged if verdict.ratio is not None]
            if _gains(judged) and fmean(ratios) < best:
                best = fmean(ratios)
                choice.op_tiers[op] = (tier, *BASE)
    return choice


def settle(
    choice: Choice, points: list[dict[str, Any]], results: dict[str, dict[str, Any]], switches: list[str]
) -> None:
    """Leave to stock every switch that is wrong or slower anywhere, or faster nowhere, with the chosen tiers."""
    tests = comparisons(results)
    for switch in switches:
        found = [(item["id"], results[item["id"]]) for item in points if item["switch"] == switch]
        reason = _why_stock(found, tests)
        if reason and switch not in (PLAN, *FOLLOWS):
            choice.stock[switch] = reason
    for switch, others in FOLLOWS.items():
        left = [name for name in others if name in choice.stock]
        if switch in switches and left:
            choice.stock[switch] = f"it does what {left[0]} does, in training and in compiled graphs"


def _why_stock(found: list[tuple[str, dict[str, Any]]], tests: int) -> str:
    """Return why the places of a switch, and their results, keep it at stock; "" where it is right and faster."""
    if not found:
        return UNUSED
    idle = ("not captured", "no effect")
    bad = [f"{name}: {result['status']}: {result.get('reason', '')}" for name, result in found
           if result["status"] not in ("valid", *idle)]  # fmt: skip
    if bad:
        return bad[0]
    if all(result["status"] in idle for _, result in found):
        name, result = found[0]
        return f"nothing is proved: {name}: {result['status']}: {result.get('reason', '')}"
    judged = [verdict for _, result in found if result["status"] == "valid" for verdict in verdicts(result, tests)]
    if _gains(judged):
        return ""
    slow = [verdict.ratio.value for verdict in judged if verdict.outcome == "slower" and verdict.ratio is not None]
    if slow:
        return f"slower than stock in {len(slow)} of {len(judged)} calls (up to {max(slow):.2f} of its time)"
    told = ", ".join(f"{ratio(result):.2f}" for _, result in found if result["status"] == "valid")
    return f"no faster than stock as far as can be measured here ({told} of its time)"


def settle_plan(choice: Choice, has_plan: bool, planned: Iterable[str]) -> None:
    """Ask for plans where the model has them and what they do themselves is enabled; measuring them comes later."""
    if not has_plan:
        choice.stock[PLAN] = UNUSED
        return
    held = [name for name in planned if choice.stock.get(name, UNUSED) != UNUSED]
    if held:
        choice.stock[PLAN] = f"a plan does {held[0]} itself, which stays at stock"
        return
    for name in planned:
        choice.stock.pop(name, None)


def plain(
    ops: list[str], candidates: list[dict[str, Any]], results: dict[str, dict[str, Any]], choice: Choice,
    has_plan: bool, planned: Iterable[str],
) -> Choice | str:  # fmt: skip
    """Return what plain toggles come to on this model, every tier allowed; or why they cannot be.

    Switches without a place in the model, and places of which nothing is proved, stay at stock there, too.
    """
    tried = {item["op"] for item in candidates}
    for item in [*candidates, *({"id": name} for name in results if name.endswith("@base"))]:
        result = results[item["id"]]
        if result["status"] not in ("valid", "declined", "not captured", "no effect"):
            return f"{item['id']} is {result['status']}"
    found = Choice({op: BASE for op in ops if op not in tried})
    found.stock = {name: why for name, why in choice.stock.items() if why == UNUSED or why.startswith("nothing is")}
    found.stock.pop(PLAN, None)
    for name in FOLLOWS:
        found.stock.pop(name, None)
    settle_plan(found, has_plan, planned)
    return found


@dataclass(frozen=True)
class Better:
    """What one arm is against another: ``order`` is 1 for better, -1 for worse, 0 for no difference; and why."""

    order: int
    reason: str


def better(arms: dict[str, dict[str, Any]], one: str, other: str, tests: int) -> Better:
    """Compare two arms of the whole model: faster is better, and so are fewer launches that are not slower."""
    verdict = judge(arms, one, other, tests)
    ours, theirs = arms[one]["launches"], arms[other]["launches"]
    told = f"{verdict.value:.2f} of its time, {ours} launches against {theirs}"
    if verdict.outcome != "same":
        return Better(1 if verdict.outcome == "faster" else -1, f"{verdict.outcome}: {told}")
    return Better((ours < theirs) - (ours > theirs), f"no difference in time that can be measured here: {told}")


@dataclass(frozen=True)
class Timed:
    """``faster``, ``slower`` or ``same``, and the ratio of the medians."""

    outcome: str
    value: float


def judge(arms: dict[str, dict[str, Any]], one: str, other: str, tests: int) -> Timed:
    """Judge the times of two arms, held against what stock and stock again differ by."""
    samples = {name: [[value] for value in arm["seconds"]] for name, arm in arms.items()}
    verdict = faster(samples[one], samples[other], log_ratios(samples[AGAIN], samples[STOCK]), tests=tests)
    return Timed(verdict.outcome, math.nan if verdict.ratio is None else verdict.ratio.value)
