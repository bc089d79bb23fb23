"""Coverage as a picture: shape x M, one coloured cell per lookup. HTML stands alone; PNG needs matplotlib."""

from __future__ import annotations

import html
import importlib
import io
from typing import Any

from ..errors import UsageError
from .coverage import Cell, Coverage
from .report import Report

COLOURS = {"exact": "#1a7f37", "padded": "#6cc07a", "torch": "#d4a72c", "unmeasured": "#8c959f", "miss": "#cf222e"}
MEANING = {
    "exact": "a row for this very M",
    "padded": "a row for the M that aiter pads to",
    "torch": "a row that says torch: F.linear",
    "unmeasured": "a row without a time",
    "miss": "no row: aiter's default",
}
_STYLE = """
body{font:14px system-ui,sans-serif;margin:24px;color:#1f2328;background:#fff}
table{border-collapse:collapse;margin:12px 0}
th,td{border:1px solid #d0d7de;padding:3px 7px;text-align:right}
th.l,td.l{text-align:left}
td.c{color:#fff;min-width:44px;text-align:center;font-variant-numeric:tabular-nums}
.key span{display:inline-block;width:14px;height:14px;margin:0 6px 0 18px;vertical-align:-2px}
"""


def page(report: Report) -> str:
    """Return one self-contained HTML page: no script, no other file, no address."""
    title = f"{report.model.name} on {report.device}"
    best_first = [report.asked, *(c for c in report.choices if c.fused != report.asked.fused)]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(report.dtype)}, tensor parallelism {report.tp}, {report.rows} rows for this device.</p>",
        '<p class="key">'
        + "".join(f'<span style="background:{COLOURS[s]}"></span>{html.escape(MEANING[s])}' for s in COLOURS)
        + "</p>",
        *(_table(coverage) for coverage in best_first),
        "<ul>",
        *(f"<li>{html.escape(sentence)}</li>" for sentence in (*report.advice, *report.model.notes)),
        "</ul>",
    ]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _table(coverage: Coverage) -> str:
    name = ", ".join(coverage.fused) or "none"
    parts = [
        f"<h2>fused: {html.escape(name)}</h2>"
        f"<p>{coverage.exact} of {coverage.total} lookups exact, {coverage.found} found, "
        f"{coverage.share_found:.1%} of weight bytes</p>",
    ]
    # A vision tower meets other values of M than the text model: one table for each set of columns.
    columns: dict[tuple[int, ...], list[str]] = {}
    for line in coverage.lines:
        linear = line.linear
        cells = "".join(_cell(cell) for cell in line.cells)
        row = f'<tr><td class="l">{html.escape(linear.role)}</td><td>{linear.n}</td><td>{linear.k}</td>{cells}</tr>'
        columns.setdefault(tuple(cell.m for cell in line.cells), []).append(row)
    for values, rows in columns.items():
        head = "".join(f"<th>M={m}</th>" for m in values)
        parts.append(f'<table><tr><th class="l">shape</th><th>N</th><th>K</th>{head}</tr>{"".join(rows)}</table>')
    return "".join(parts)


def _cell(cell: Cell) -> str:
    state = cell.state
    hit = cell.hit
    time = f"{hit.row.us:g}" if hit is not None and hit.row.measured else ""
    told = f"{MEANING[state]}" + (f"; {hit.row.libtype}, M={hit.m}, {hit.row.us:g} us" if hit is not None else "")
    return f'<td class="c" style="background:{COLOURS[state]}" title="{html.escape(told)}">{time}</td>'


def picture(report: Report) -> bytes:
    """Return a PNG of the asked coverage; raise OverlayError when matplotlib is absent."""
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
        colours: Any = importlib.import_module("matplotlib.colors")
        patches: Any = importlib.import_module("matplotlib.patches")
    except ImportError as error:
        remedy = "pip install matplotlib, or use --html, which needs nothing"
        raise UsageError("no-matplotlib", "a PNG needs matplotlib, which is not installed", remedy=remedy) from error
    lines = report.asked.lines
    states = list(COLOURS)
    width = max(len(line.cells) for line in lines)
    grid = [
        [states.index(cell.state) for cell in line.cells] + [len(states)] * (width - len(line.cells)) for line in lines
    ]
    figure = figures.Figure(figsize=(2.5 + 0.6 * width, 1.5 + 0.35 * len(lines)), layout="constrained")
    axes = figure.subplots()
    palette = colours.ListedColormap([*COLOURS.values(), "#ffffff"])
    axes.pcolormesh(grid, cmap=palette, vmin=0, vmax=len(states), edgecolors="white", linewidth=1)
    axes.invert_yaxis()
    axes.set_yticks(
        [y + 0.5 for y in range(len(lines))], [f"{line.linear.role} {line.linear.n}x{line.linear.k}" for line in lines]
    )
    axes.set_xticks([x + 0.5 for x in range(len(report.ladder))], [str(m) for m in report.ladder])
    axes.set_xlabel(
        "M (a vision tower's columns are whole pictures)" if any(x.linear.kind == "image" for x in lines) else "M"
    )
    axes.set_title(
        f"{report.model.name} on {report.device}: {report.asked.found} of {report.asked.total} lookups found"
    )
    axes.legend(
        handles=[patches.Patch(color=COLOURS[state], label=state) for state in states],
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Software": None})
    return stream.getvalue()
