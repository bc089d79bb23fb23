"""The whole model under the profile, against stock and against plain toggles: the last word about the choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...shared import rules
from ..workers import Setup
from . import choose, document, steps
from .choose import PLAN, Choice
from .session import Session
from .steps import Counted, Say

PROFILE, NO_PLAN, PLAIN = "profile", "profile without plan", "plain toggles"


@dataclass
class Found:
    """What the candidates came to: ``points`` has one per place, with the chosen tiers, ``tried`` the others."""

    choice: Choice
    points: list[dict[str, Any]]
    tried: list[dict[str, Any]]
    ops: list[str]

    def enabled(self, session: Session, item: dict[str, Any]) -> bool:
        """True for a place that the profile enables and that was proved."""
        return item["switch"] not in self.choice.stock and session.results[item["id"]]["status"] == "valid"

    def not_reproduced(self, session: Session) -> dict[str, str]:
        """Return, by place, why a captured call could not be made again."""
        results = {item["point"]: session.results[item["id"]] for item in self.points}
        missing = ("no call was captured", "")
        return {point: str(result["reason"]) for point, result in results.items()
                if result["status"] == "not captured" and result.get("reason", "") not in missing}  # fmt: skip


def settle(
    session: Session, setup: Setup, supply: dict[str, Any], found: Found, limit: float, say: Say, counted: Counted
) -> dict[str, Any]:
    """Measure the arms and let the better one be the profile; return what was measured and decided, with a summary."""
    told: dict[str, Any] = {"arms": {}, "decisions": [], "summary": ""}
    settings = {PROFILE: document.settings_of(found.choice, supply)}
    if PLAN not in found.choice.stock:
        without = Choice(found.choice.op_tiers, {**found.choice.stock, PLAN: "compared"})
        settings[NO_PLAN] = document.settings_of(without, supply)
    plain = _plain(session, setup, supply, found, counted)
    if isinstance(plain, Choice):
        settings[PLAIN] = document.settings_of(plain, supply)
    else:
        told["decisions"].append(f"plain toggles are no profile: {plain}")
    measured = steps.whole(session, settings, limit, counted)
    if isinstance(measured, str):
        told["summary"] = f"the whole model was not timed: {measured}"
        if PLAN not in found.choice.stock:
            found.choice.stock[PLAN] = f"nothing is proved: {told['summary']}"
        return told
    told["arms"] = measured
    chosen, tests = PROFILE, choose.comparisons(session.results)
    if NO_PLAN in settings:
        verdict = choose.better(measured, PROFILE, NO_PLAN, tests)
        told["decisions"].append(f"plan against the same without it: {verdict.reason}")
        if verdict.order <= 0:
            found.choice.stock[PLAN] = f"not better than the same without it ({verdict.reason})"
            chosen = NO_PLAN
    if isinstance(plain, Choice):
        verdict = choose.better(measured, PLAIN, chosen, tests)
        told["decisions"].append(f"plain toggles against the profile: {verdict.reason}")
        if verdict.order > 0:
            found.choice, chosen = plain, PLAIN
    for line in told["decisions"]:
        say(f"whole model  {line}")
    told["chosen"], told["summary"] = chosen, _summary(measured, chosen, tests)
    return told


def _summary(measured: dict[str, Any], chosen: str, tests: int) -> str:
    """Return launches, time and tokens of what was chosen against stock."""
    timed = choose.judge(measured, chosen, choose.STOCK, tests)
    ours, theirs = measured[chosen], measured["stock"]
    outcome = {"faster": "faster", "slower": "SLOWER", "same": "no difference that can be measured here"}[timed.outcome]
    tokens = "" if ours["tokens"] is None else f", greedy tokens {_alike(ours['tokens'] == theirs['tokens'])}"
    return (f"a step launches {ours['launches']} kernels (stock {theirs['launches']}) and takes {timed.value:.2f} of "
            f"stock's time: {outcome}{tokens}")  # fmt: skip


def _alike(equal: bool) -> str:
    return "equal" if equal else "differ"


def _plain(session: Session, setup: Setup, supply: dict[str, Any], found: Found, counted: Counted) -> Choice | str:
    """Return plain toggles as a choice where every candidate was right and the whole model is, too; or why not."""
    plain = choose.plain(found.ops, found.tried, session.results, found.choice, session.has_plan, rules().PLANNED)
    if isinstance(plain, str) or (plain.stock, plain.op_tiers) == (found.choice.stock, found.choice.op_tiers):
        return plain if isinstance(plain, str) else "they are what the profile is"
    result = steps.end_to_end(setup, *document.run_of(plain, supply), counted)
    if result.status not in ("ok", "no-effect"):
        return f"the whole model {result.status} with them"
    return plain
