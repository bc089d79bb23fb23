"""One self-contained HTML page: no script, no other file, no address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import plots
from .formats import columns, describe, headline, parity, sentence, tiers, verdict

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_MISSING = {
    "roofline": "Only decoding has a roofline here.",
    "ttft": "One prompt length was measured; pass --isl 128,512,2048 for a curve.",
    "waterfall": "Run --matrix toggles for the contribution of each toggle.",
    "launches": "Launches are not counted under torch.compile.",
    "coverage": "No GPU with tuning tables is known here; pass --gpu gfx950:256.",
    "noise": "One round was measured.",
}


def render(report: dict[str, Any]) -> str:
    """Return the page of a report. Needs jinja2 and matplotlib (extra ``plot``)."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    height = max(2.4, 0.32 * len(report["cells"]) + 1.2)
    pictures = [
        {"id": id, "title": title, "svg": plots.svg(report, draw, height), "missing": _MISSING.get(id, "Nothing.")}
        for id, title, draw in plots.PICTURES
    ]
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        columns=columns(report),
        rows=[_row(row, columns(report)) for row in report["cells"]],
        roofs=[sentence(row) for row in report["cells"] if row["measures"] and row.get("roofline")],
        pictures=pictures,
        fallbacks=fallbacks(report),
    )


def _row(row: dict[str, Any], names: list[str]) -> dict[str, Any]:
    judged = row["verdicts"].get(headline(row))
    return {
        "id": row["id"],
        "latencies": [describe(row, name) for name in names],
        "cold": describe(row, "first_call"),
        "outcome": judged["outcome"] if judged else "",
        "why": judged["reason"] if judged else row["message"],
        "verdict": verdict(row, headline(row)),
        "ok": row["parity"]["ok"],
        "parity": parity(row) if row["parity"]["ok"] else row["parity"]["reason"],
        "tiers": tiers(row),
    }


def fallbacks(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every counted decline of every cell."""
    return [
        {"cell": row["id"], "op": op["op"], "tier": tier["tier"], "reason": why["reason"], "calls": why["calls"]}
        for row in report["cells"]
        for op in row.get("dispatch", [])
        for tier in op["tiers"]
        for why in tier["declined"]
    ]
