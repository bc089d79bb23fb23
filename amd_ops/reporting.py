"""report() and explain(): what ran, what did not, and why. Reading them changes nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from . import device, dispatch, masks, toggles
from .backends import aiter, shuffled
from .backends.triton import tier as triton
from .dispatch import Candidate, Op, Verdict
from .weights import packing

REPORT_SCHEMA = "amd-ops.report/1"
_MEMORY = {
    "packed": "packed matrices, in place of their weights",
    "shuffled": "shuffled copies, beside their weights",
    "masks": "plans of masks, and the contents they were made from",
}


@dataclass(frozen=True)
class RunReport:
    """Counters of every op that was called. ``str()`` is a table; ``as_dict()`` and ``to_json()`` carry a schema
    version.
    """

    content: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON-ready values."""
        return self.content

    def to_json(self, indent: int | None = None) -> str:
        """Return the report as one JSON object."""
        return json.dumps(self.content, indent=indent)

    def calls(self, op: str, tier: str | None = None) -> int:
        """Return how often ``op`` was called, or how often ``tier`` (or ``tier:provider``) ran it."""
        for row in self.content["ops"]:
            if row["op"] == op:
                if tier is None:
                    return int(row["calls"])
                return sum(t["calls"] for t in row["tiers"] if tier in (t["tier"], t["tier"].partition(":")[0]))
        return 0

    def __str__(self) -> str:
        lines = [
            f"amd_ops: {_device_text(self.content['device'])}",
            f"{'op':<20} {'tier':<12} {'ran':<4} {'calls':>9} {'first call':>11}  why not",
        ]
        # Every row says its op, so that a search finds the tier that ran beside those that did not.
        for row in self.content["ops"]:
            for tier in row["tiers"]:
                ran = "ran" if tier["calls"] else "-"
                first = "" if tier["first_call_s"] is None else f"{tier['first_call_s'] * 1e3:.2f} ms"
                reasons = "; ".join(f"{entry['calls']}x {entry['reason']}" for entry in tier["declined"])
                counted = f"{tier['tier']:<12} {ran:<4} {tier['calls']:>9} {first:>11}"
                lines.append(f"{row['op']:<20} {counted}  {reasons}".rstrip())
        if not self.content["ops"]:
            lines.append("(no op has been called)")
        settings = self.content["settings"]
        if settings["profile_note"]:
            lines.append(settings["profile_note"])
        if settings["stock"]:
            lines.append(f"left to stock's expressions: {', '.join(settings['stock'])}")
        if self.content["gemm_table"]:
            lines.append(f"GEMM table: {self.content['gemm_table']['reason']}")
        lines += [f"{count}x {note}" for note, count in self.content["notes"].items()]
        lines += [f"{_MEMORY[kind]}: {size} bytes" for kind, size in self.content["memory"].items() if size]
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """Which tier a call would take: one verdict per tier down to the one that runs."""

    op: str
    tier: str | None
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        lines = [f"{self.op}: {'tier ' + self.tier + ' would run' if self.tier else 'no tier can run this call'}"]
        for verdict in self.verdicts:
            state = "yes" if verdict.ok else "no"
            lines.append(f"  {verdict.tier:<7} {state:<4} {verdict.reason}".rstrip())
        return "\n".join(lines)


def report() -> RunReport:
    """Return the counters of every op called so far in this process. Calls inside a compiled graph are not counted.

    Examples:
        >>> amd_ops.reset_counters()
        >>> _ = amd_ops.linear(torch.ones(1, 2), torch.ones(2, 2))
        >>> "linear" in str(amd_ops.report())
        True
    """
    rows = []
    for op in dispatch.ops.values():
        op.fold()
        if op.calls:
            # A provider that was chosen once and has nothing to tell is no row.
            told = [t for t in op.tallies.values() if t.name == t.tier or t.calls or t.declined]
            rows.append({"op": op.name, "calls": op.calls, "tiers": [_tier_row(tally) for tally in told]})
    found, table = device.current(), aiter.gemm_table()
    content = {
        "schema": REPORT_SCHEMA,
        "device": None if found is None else {"type": found.type, "arch": found.arch, "cu_count": found.cu_count},
        "settings": toggles.settings().as_dict(),
        "gemm_table": None if table is None else asdict(table),
        "notes": {**triton.notes(), **aiter.rounding_notes(found, rows)},
        "memory": memory(),
        "ops": rows,
    }
    return RunReport(content)


def memory() -> dict[str, int]:
    """Return the bytes that are alive now: ``packed`` ones take the place of weights, the others are added."""
    return {"packed": packing.nbytes(), "shuffled": shuffled.nbytes(), "masks": masks.nbytes()}


def explain(op: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """Say which tier ``op(*args, **kwargs)`` would take and why each higher one would not, without running any of them.

    ``op`` is a public op or its name. Bad arguments raise as the op itself would.

    Examples:
        >>> q = torch.randn(1, 4, 2, 8)
        >>> amd_ops.explain(amd_ops.attention, q, q, q).tier
        'torch'
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", str(op))
    found = dispatch.ops.get(name)
    if not isinstance(found, Op) or found.signature is None:
        known = ", ".join(sorted(name for name, known in dispatch.ops.items() if known.signature is not None))
        raise ValueError(f"explain() knows no op {name!r}; known are {known}.")
    return _explain(found, args, kwargs)


def _explain(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Explanation:
    assert op.signature is not None
    bound = op.signature.bind(*args, **kwargs)
    bound.apply_defaults()
    values = tuple(bound.arguments.values())
    arranged = op.arrange(*values) if op.arrange is not None else values
    settings = toggles.settings()
    verdicts: list[Verdict] = []
    for tier, offer in op.all_offers(settings):
        name = f"{tier.name}:{offer.provider}" if offer.provider else tier.name
        if isinstance(offer, dispatch.Refusal):
            verdicts.append(Verdict(False, name, offer.reason))
            continue
        verdicts.append(_judge(name, offer, arranged))
        if verdicts[-1].ok:
            return Explanation(op.name, name, tuple(verdicts))
    return Explanation(op.name, None, tuple(verdicts))


def _judge(tier: str, candidate: Candidate, args: tuple[Any, ...]) -> Verdict:
    reason = candidate.check(*args) if candidate.check is not None else ""
    if reason or candidate.variant is None:
        return Verdict(not reason, tier, reason)
    known = candidate.verdicts.get(candidate.variant(*args))
    if known is None:
        return Verdict(True, tier, "its first call is compared with the eager formula")
    return Verdict(not known, tier, known)


def _tier_row(tally: dispatch.Tally) -> dict[str, Any]:
    declined = [{"reason": reason, "calls": count} for reason, count in tally.declined.items()]
    return {"tier": tally.name, "calls": tally.calls, "first_call_s": tally.first_call_s, "declined": declined}


def _device_text(found: dict[str, Any] | None) -> str:
    return (
        f"no AMD GPU ({device.why_none().partition(': ')[2]})"
        if found is None
        else f"{found['arch']} with {found['cu_count']} compute units ({found['type']})"
    )


def overlay_info() -> dict[str, str]:
    """Return {module name: "sha256:..." of the stock file it was made from} for every overlaid module imported so far.

    Reads sys.modules only: no file is opened and no lazy module is triggered.

    Examples:
        >>> amd_ops.overlay_info()  # {"transformers.models.llama.modeling_llama": "sha256:..."} once one is imported
        {...}
    """
    found = {}
    for name, module in list(sys.modules.items()):
        base = getattr(module, "__dict__", {}).get("__amd_overlay__")
        if isinstance(base, str):
            found[name] = base
    return dict(sorted(found.items()))
