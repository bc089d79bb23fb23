"""The pictures of a report, as SVG text. Each takes the report and returns None where it has nothing to show."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from .formats import headline

Report = dict[str, Any]
Draw = Callable[[Any, Report], bool]

STOCK_COLOUR, OURS, GOOD, BAD = "#6e7781", "#d1242f", "#1a7f37", "#bc4c00"


def svg(report: Report, draw: Draw, height: float = 3.2) -> str | None:
    """Draw one picture; no font or address outside of the page is needed."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    colours = [matplotlib.colormaps["tab20"](index) for index in range(20)]  # a matrix of toggles has over ten lines
    with pyplot.rc_context({"svg.fonttype": "path", "svg.hashsalt": "amd-overlay", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(8.5, height), layout="constrained")
        axes.set_prop_cycle(color=colours)
        try:
            if not draw(axes, report):
                return None
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None})
        finally:
            pyplot.close(figure)
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def _rows(report: Report, measure: str | None = None) -> list[dict[str, Any]]:
    return [row for row in report["cells"] if row["measures"] and (measure is None or measure in row["measures"])]


def _colours(rows: list[dict[str, Any]]) -> list[str]:
    return [STOCK_COLOUR if row["build"] == "stock" else OURS for row in rows]


def roofline(axes: Any, report: Report) -> bool:
    """Decode tokens/s of every cell beside the bound by memory traffic."""
    rows = [row for row in _rows(report, "per_token") if row.get("roofline")]
    if not rows:
        return False
    names = [row["id"] for row in rows]
    axes.barh(names, [row["throughput"]["decode_tok_s"] for row in rows], color=_colours(rows))
    for index, row in enumerate(rows):
        bound = row["roofline"]["bound_tok_s"]
        axes.plot([bound, bound], [index - 0.4, index + 0.4], color="black", linewidth=2)
    axes.invert_yaxis()
    axes.set_xlabel("decode, tokens/s (black: every weight read once at the measured copy bandwidth)")
    return True


def ttft(axes: Any, report: Report) -> bool:
    """TTFT against prompt length, one line per cell name; needs two lengths."""
    rows = _rows(report, "prefill")
    if len({row["work"]["isl"] for row in rows}) < 2:
        return False
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = sorted((r for r in rows if r["name"] == name), key=lambda r: int(r["work"]["isl"]))
        lengths = [row["work"]["isl"] for row in mine]
        latencies = [row["measures"]["prefill"]["latency"] for row in mine]
        middle = [latency["p50"] * 1e3 for latency in latencies]
        axes.plot(lengths, middle, marker="o", label=name)
        axes.fill_between(lengths, [x["low"] * 1e3 for x in latencies], [x["high"] * 1e3 for x in latencies], alpha=0.2)
    axes.set_xlabel("prompt length, tokens")
    axes.set_ylabel("TTFT, ms")
    axes.legend()
    return True


def percentiles(axes: Any, report: Report) -> bool:
    """Median, p90 and p99 of the headline measure, with the interval of the median."""
    rows = _rows(report)
    if not rows:
        return False
    for index, row in enumerate(rows):
        latency = row["measures"][headline(row)]["latency"]
        axes.plot([latency["low"] * 1e3, latency["high"] * 1e3], [index, index], color="#8c959f", linewidth=6)
        for key, marker in (("p50", "o"), ("p90", "|"), ("p99", "x")):
            axes.plot(latency[key] * 1e3, index, marker, color=_colours([row])[0], label=key if not index else None)
    axes.set_yticks(range(len(rows)), [row["id"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"{headline(rows[0])}, ms (grey: 99 % interval of the median)")
    axes.legend(loc="lower right")
    return True


def waterfall(axes: Any, report: Report) -> bool:
    """What each toggle gives alone against stock, and what all give beyond the sum, for the first size of work."""
    measured = _rows(report)
    rows = {row["name"]: row for row in measured if row["work"] == measured[0]["work"]}
    if "stock" not in rows or "all" not in rows:
        return False
    toggles = [name.removeprefix("only ") for name in rows if name.startswith("only ")]
    if not toggles:
        return False

    def median(name: str) -> float:
        value: float = rows[name]["measures"][headline(rows[name])]["latency"]["p50"]
        return value

    steps = [(f"+ {toggle}", median(f"only {toggle}") - median("stock")) for toggle in toggles]
    steps.append(("together, beyond the sum", median("all") - median("stock") - sum(step for _, step in steps)))
    level = median("stock")
    levels = [level]
    axes.bar(["stock"], [level * 1e3], color=STOCK_COLOUR)
    for name, change in steps:
        axes.bar([name], [change * 1e3], bottom=[level * 1e3], color=GOOD if change < 0 else BAD)
        level += change
        levels.append(level)
    axes.bar(["all"], [level * 1e3], color=OURS)
    axes.set_xlabel(rows["stock"]["id"].removeprefix("stock "))
    axes.set_ylabel(f"{headline(rows['stock'])}, ms")
    axes.tick_params(axis="x", rotation=20)
    axes.set_ylim(min(levels) * 0.5e3, max(levels) * 1.05e3)
    return True


def launches(axes: Any, report: Report) -> bool:
    """Kernels per step: one call of an op of ours counts once."""
    rows = [row for row in _rows(report) if row.get("launches", {}).get("once")]
    if not rows:
        return False
    layers = report["model"]["layers"] or 1
    axes.barh([row["id"] for row in rows], [row["launches"]["once"] / layers for row in rows], color=_colours(rows))
    axes.invert_yaxis()
    axes.set_xlabel(f"compute ops per {rows[0]['launches']['unit']} and layer (what lies outside of layers is in it)")
    return True


def coverage(axes: Any, report: Report) -> bool:
    """Tuned GEMM rows by shape and M, where the report knows a device with tables."""
    found = report.get("tuning")
    if not found or not found["lines"]:
        return False
    shades = {"exact": 1.0, "padded": 0.7, "torch": 0.5, "unmeasured": 0.3, "miss": 0.0}
    grid = [[shades[cell] for cell in line["cells"]] for line in found["lines"]]
    axes.imshow(grid, aspect="auto", cmap="RdYlGn", vmin=0, vmax=1)
    axes.set_yticks(range(len(grid)), [line["name"] for line in found["lines"]])
    axes.set_xticks(range(len(found["ladder"])), found["ladder"])
    axes.set_xlabel(f"M, on {found['gpu']} (green: a tuned row, red: none)")
    return True


def noise(axes: Any, report: Report) -> bool:
    """Every process's median, in the order of rounds: what the machine did while it was measured."""
    rows = _rows(report)
    if not rows:
        return False
    longest = 0
    for row in rows[:8]:
        rounds = row["measures"][headline(row)]["latency"]["values"]
        medians = [sorted(one)[len(one) // 2] * 1e3 for one in rounds if one]
        longest = max(longest, len(medians))
        axes.plot(range(1, len(medians) + 1), medians, marker="o", label=row["id"])
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlabel("round")
    axes.set_ylabel("median of the process, ms")
    axes.legend(fontsize=7)
    return longest > 1


PICTURES: tuple[tuple[str, str, Draw], ...] = (
    ("roofline", "Decode speed against the memory roofline", roofline),
    ("ttft", "Time to first token against prompt length", ttft),
    ("percentiles", "Latency percentiles", percentiles),
    ("waterfall", "Contribution of each toggle", waterfall),
    ("launches", "Kernel launches", launches),
    ("coverage", "Tuned GEMM coverage", coverage),
    ("noise", "Rounds", noise),
)
