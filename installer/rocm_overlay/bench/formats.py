"""A report as a table for people, as CSV and as markdown."""

from __future__ import annotations

import csv
import io
from typing import Any

from .. import console
from .report import MEASURES

HEADLINE = {mode: measures[0][0] for mode, measures in MEASURES.items()}


def headline(row: dict[str, Any]) -> str:
    """The measure that a row is first judged by."""
    return HEADLINE[row["work"]["mode"]]


def milliseconds(seconds: float) -> str:
    """Three significant digits, in ms."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def describe(row: dict[str, Any], measure: str) -> str:
    """``12.3 [12.1, 12.6]``: the median and its interval in ms; "-" where it was not measured."""
    found = row["measures"].get(measure)
    if found is None:
        return "-"
    latency = found["latency"]
    return f"{milliseconds(latency['p50'])} [{milliseconds(latency['low'])}, {milliseconds(latency['high'])}]"


def verdict(row: dict[str, Any], measure: str) -> str:
    """``1.23x faster`` only where that may be said; else why not."""
    found = row["verdicts"].get(measure)
    if found is None:
        return "reference" if row["measures"] else row["status"]
    if found["outcome"] == "same":
        return "no difference" if row["parity"]["ok"] else "parity failed"
    ratio = found["ratio"]["value"]
    return f"{1 / ratio:.2f}x faster" if found["outcome"] == "faster" else f"{ratio:.2f}x slower"


def columns(report: dict[str, Any]) -> list[str]:
    """The measures of the report's mode."""
    return [name for name, _ in MEASURES[report["cells"][0]["work"]["mode"]]]


def show(report: dict[str, Any]) -> None:
    """Print the verdict first, then a row per cell; every measure, launches and tiers where details are asked for."""
    model, machine = report["model"], report["machine"]
    console.show(summary(report))
    console.show(
        f"{model['path']}: {model['parameters'] / 1e6:.1f} M parameters, {model['dtype']}, {machine['device_name']}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}",
        indent="  ",
    )
    names = columns(report) if console.verbose() else [headline(report["cells"][0])]
    more = ("launches", "tiers") if console.verbose() else ()
    rows = []
    for row in report["cells"]:
        launches = str(row["launches"].get("once", "-")) if row.get("launches") else "-"
        told = (launches, tiers(row)) if more else ()
        measured = [describe(row, name) for name in names]
        rows.append((row["id"], *measured, verdict(row, headline(row)), parity(row), *told))
    console.table(("cell", *(f"{name} ms [99 %]" for name in names), "against stock", "parity", *more), rows)
    for name, values in report["noise"].items():
        if values:
            console.show(f"noise of this machine, {name} against itself: up to {max(values.values()):.1%}")
    console.detail(*(sentence(row) for row in report["cells"] if row["name"] == "stock" and row.get("roofline")))
    console.show(*(f"warning: {text}" for text in report["warnings"]))


def summary(report: dict[str, Any]) -> str:
    """One sentence: what the cells came to against stock."""
    told = [verdict(row, headline(row)) for row in report["cells"] if row["verdicts"]]
    failed = sum(row["status"] != "ok" for row in report["cells"])
    parts = [text if told.count(text) == 1 else f"{text} ({told.count(text)} cells)" for text in dict.fromkeys(told)]
    parts += [f"{failed} of {len(report['cells'])} cells could not be measured"] if failed else []
    return f"against stock: {', '.join(parts) or 'nothing was compared'}"


def sentence(row: dict[str, Any]) -> str:
    """What the roofline says of a row."""
    found = row["roofline"]
    return (
        f"{row['id']}: {found['verdict']}, {found['achieved_bytes_per_s'] / 1e9:.1f} GB/s of weights at "
        f"{found['copy_bytes_per_s'] / 1e9:.1f} GB/s copy bandwidth ({found['mbu']:.0%}); the bound is "
        f"{found['bound_tok_s']:.1f} tokens/s, decoding gives {row['throughput']['decode_tok_s']:.1f}"
    )


def parity(row: dict[str, Any]) -> str:
    """One word or the numbers."""
    found = row["parity"]
    if not found["ok"]:
        return "FAILED"
    if found["max_rel"] is None:
        return "-"
    tokens = "" if found["tokens"] is None else f", {found['tokens_equal']}/{found['tokens']} tokens"
    return ("same bits" if found["max_abs"] == 0 else f"{found['max_rel']:.1e}") + tokens


def tiers(row: dict[str, Any]) -> str:
    """Which tiers ran, as ``torch 9``: how many ops each answered."""
    found: dict[str, int] = {}
    for op in row.get("dispatch", []):
        for tier in op["tiers"]:
            if tier["calls"]:
                found[tier["tier"]] = found.get(tier["tier"], 0) + 1
    return ", ".join(f"{name} {count}" for name, count in found.items()) or "-"


def as_csv(report: dict[str, Any]) -> str:
    """One line per cell and measure."""
    text = io.StringIO()
    fields = ("count", "mean", "stdev", "p50", "p90", "p95", "p99", "min", "max", "low", "high")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["cell", "build", "measure", "unit", *fields, "outcome", "ratio", "parity"])
    for row in report["cells"]:
        for name, measure in row["measures"].items():
            latency, judged = measure["latency"], row["verdicts"].get(name)
            ratio = judged["ratio"]["value"] if judged and judged["ratio"] else ""
            outcome = judged["outcome"] if judged else ""
            values = [latency[field] for field in fields]
            writer.writerow([row["id"], row["build"], name, "s", *values, outcome, ratio, row["parity"]["ok"]])
    return text.getvalue()


def as_markdown(report: dict[str, Any]) -> str:
    """The summary as a markdown table."""
    names = columns(report)
    head = ["cell", *(f"{name} ms [99 %]" for name in names), "launches", "against stock", "parity"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in report["cells"]:
        cells = [
            row["id"],
            *(describe(row, name) for name in names),
            str(row["launches"].get("once", "-")) if row.get("launches") else "-",
            verdict(row, headline(row)),
            parity(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    machine, model = report["machine"], report["model"]
    lines += [
        "",
        f"{model['path']}, {model['parameters'] / 1e6:.1f} M parameters, {model['dtype']}; {machine['device_name']}; "
        f"torch {machine['torch']}, transformers {machine['transformers']}; {report['protocol']['rounds']} rounds of "
        f"{report['protocol']['runs']} runs in fresh processes, {report['created'][:10]}.",
    ]
    return "\n".join(lines) + "\n"
