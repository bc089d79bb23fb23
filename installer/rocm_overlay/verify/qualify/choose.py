"""From results to a profile: which op may use which tier, and which switch stays at stock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BASE = ("torch", "eager")


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


def is_faster(result: dict[str, Any]) -> bool:
    """True when it is valid, no call is slower than stock beyond doubt, and one is faster beyond doubt."""
    times = result.get("timings") or []
    if result.get("status") != "valid" or not times:
        return False
    return all(item["interval"][0] <= 1.0 for item in times) and any(item["interval"][1] < 1.0 for item in times)


def choose_tiers(ops: list[str], candidates: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> Choice:
    """Give every op the best tier that is valid wherever it was tried and beats the tiers that always work."""
    choice = Choice(dict.fromkeys(ops, BASE))
    for op in ops:
        best = 1.0
        for tier in dict.fromkeys(item["tier"] for item in candidates if item["op"] == op):
            tried = [item for item in candidates if item["op"] == op and item["tier"] == tier]
            found = [results[item["id"]] for item in tried if results[item["id"]]["status"] != "declined"]
            if not found or any(result["status"] != "valid" for result in found):
                continue
            gains = [
                ratio(results[item["id"]]) / ratio(results[f"{item['point']}@base"])
                for item in tried
                if results[item["id"]]["status"] == "valid" and results[f"{item['point']}@base"]["status"] == "valid"
            ]
            gain = sum(gains) / len(gains) if gains else min(ratio(result) for result in found)
            if gain < best:
                best = gain
                choice.op_tiers[op] = (tier, *BASE)
    return choice


def settle(
    choice: Choice, points: list[dict[str, Any]], results: dict[str, dict[str, Any]], switches: list[str]
) -> None:
    """Leave to stock every switch that is wrong anywhere, or faster nowhere, with the chosen tiers."""
    for switch in switches:
        found = [(item["id"], results[item["id"]]) for item in points if item["switch"] == switch]
        bad = [f"{name}: {result['status']}: {result.get('reason', '')}" for name, result in found
               if result["status"] not in ("valid", "not captured")]  # fmt: skip
        if not found:
            choice.stock[switch] = "the model has no place for it"
        elif bad:
            choice.stock[switch] = bad[0]
        elif all(result["status"] == "not captured" for _, result in found):
            choice.stock[switch] = "no call was captured, so nothing is proved"
        elif not any(is_faster(result) for _, result in found):
            told = ", ".join(f"{ratio(result):.2f}" for _, result in found if result["status"] == "valid")
            choice.stock[switch] = f"not faster than stock's expression beyond doubt (time over stock {told})"
