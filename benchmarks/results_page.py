"""Writes docs/benchmarks.md from benchmarks/results/*.json: every row names the machine that it was measured on.

python benchmarks/results_page.py            # writes the page
python benchmarks/results_page.py --check    # 1 when the committed page is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Measured results

Written by `make results-page` from the files in [benchmarks/results](../benchmarks/results); do not edit by hand. A row
tells what one file says, on the machine that the file names. Raw samples are in the files. What is missing was not
measured: no row here comes from an AMD GPU unless its machine says so. How each was made: the command in its file.
"""
COLUMNS = ("what", "stock", "overlaid", "overlaid / stock", "measured on", "with", "file")
UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured, both sides as text, and their ratio where it is one of medians."""

    what: str
    stock: str
    overlaid: str
    ratio: float | None = None


def _seconds(content: dict[str, Any]) -> Iterator[Row]:
    """bench-cpu: prefill and 16 decode steps of a llama, in processor time."""
    for phase, sides in content["seconds"].items():
        stock, ours = median(sides["stock"]), median(sides["overlaid"])
        what = f"llama, {content['layers']} layer(s), bf16: {phase}, median of {len(sides['stock'])}"
        yield Row(what, f"{stock * 1e3:.1f} ms", f"{ours * 1e3:.1f} ms", ours / stock)


def _host(content: dict[str, Any]) -> Iterator[Row]:
    """bench-host: what a decode step costs the host per layer: tiny tensors, foreign kernels that do nothing."""
    modes = {
        "off": "toggles off",
        "torch": "torch tier, real CPU ops",
        "aiter": "tier aiter, its functions stubbed",
        "triton": "tier triton, its launch stubbed",
        "one-call": "every op an empty call",
        "watching": "of which looking whether anything has changed",
    }
    for case, layer in content["us_per_layer"].items():
        for mode, text in modes.items():
            stock = layer["bf16-stock" if mode == "aiter" else "stock"]
            yield Row(
                f"{case}: host time of a layer, {text}", f"{stock:.1f} us", f"{layer[mode]:.1f} us", layer[mode] / stock
            )
    for name, value in content["bound_ns"].items():
        yield Row(f"{name}", "", f"{value:.0f} ns")
    for name, value in content["dispatch_ns"].items():
        yield Row(f"dispatch of `{name}`, added per call", "", f"{value:.0f} ns")
    yield Row("`import amd_ops` after torch", "", f"{median(content['import_ms']):.1f} ms")


def _host_before_plans(content: dict[str, Any]) -> Iterator[Row]:
    """bench-host of before plans, with a new cache at every step: what a layer costs when its tensors are tiny."""
    layer = content["us_per_layer"]
    for name, text in (("off", "toggles off"), ("torch", "everything on, torch tier"), ("one-call", "one call per op")):
        what = f"host time of a near-empty llama layer, {text}"
        yield Row(what, f"{layer['stock']:.1f} us", f"{layer[name]:.1f} us", layer[name] / layer["stock"])
    for name, value in content["dispatch_ns"].items():
        yield Row(f"dispatch of `{name}`, added per call", "", f"{value:.0f} ns")
    yield Row("`import amd_ops` after torch", "", f"{median(content['import_ms']):.1f} ms")


def _launches(content: dict[str, Any]) -> Iterator[Row]:
    """bench-launches: kernels of one decoder layer, as the bound tiers launch them. No time."""
    for row in content["rows"]:
        for phase in ("decode", "static decode"):
            if phase in row["stock"]:
                stock, ours = (row[side][phase]["kernels"] for side in ("stock", "overlaid"))
                yield Row(f"{row['model']}: kernels per layer, {phase}", f"{stock:g}", f"{ours:g}", ours / stock)


def _compiled(content: dict[str, Any]) -> Iterator[Row]:
    """bench-compiled: kernels of one decoder layer in a compiled decode step, counted in Inductor's code. No time."""
    for row in content["rows"]:
        stock = row["stock"].get("kernels")
        for side in ("torch", "aiter"):
            ours = row[side].get("kernels")
            ratio = ours / stock if ours and stock else None
            told = ["no graph" if count is None else f"{count:g}" for count in (stock, ours)]
            yield Row(f"{row['model']}: kernels per layer, compiled static decode, tier {side}", *told, ratio)


def _memory(content: dict[str, Any]) -> Iterator[Row]:
    """bench-memory: bytes of parameters before and after packing, and the peak on the way."""
    stock, ours = content["stock_bytes"], content["bytes_after"]
    what = f"parameters after packing {content['groups']} groups"
    yield Row(what, f"{stock / 2**20:.1f} MiB", f"{ours / 2**20:.1f} MiB", ours / stock)
    yield Row("peak while packing, above stock", "", f"{content['peak_over_stock'] / 2**20:.1f} MiB")


def _training(content: dict[str, Any]) -> Iterator[Row]:
    """bench-training: what one layer more adds to a step, and the peak of the loss; operations are launches."""
    for architecture, rows in content["layer"].items():
        stock = rows["stock"]
        for name in (one for one in rows if one != "stock"):
            for what in rows[name]:
                told = f"operations {what}" if what in ("forward", "backward") else what
                ours, theirs = rows[name][what], stock[what]
                row = f"{architecture}, a layer of a training step, {name}: {told}"
                yield Row(row, f"{theirs:,}", f"{ours:,}", ours / theirs)
    loss = content["loss"]
    row = f"peak of the loss, forward and backward, {loss['rows']} rows, {loss['words']:,} words, bf16"
    sides = loss["stock_peak"], loss["fused_peak"]
    yield Row(row, *(f"{one / 2**20:.0f} MiB" for one in sides), sides[1] / sides[0])
    sides = loss["stock_seconds"], loss["fused_seconds"]
    yield Row("the same: processor time, one run", *(f"{one:.1f} s" for one in sides), sides[1] / sides[0])


def _bench(content: dict[str, Any]) -> Iterator[Row]:
    """`overlay bench`: a cell against stock. The ratio stands there only where the report tells a difference."""
    stock = {row["id"]: row for row in content["cells"] if row["name"] == "stock"}
    model = f"{content['model']['path']}, {content['model']['dtype']}"
    for row in content["cells"]:
        theirs = stock.get(row["against"])
        if row["name"] == "stock" or not row["measures"] or theirs is None or not theirs["measures"]:
            continue
        for measure, verdict in row["verdicts"].items():
            sides = [_interval(one["measures"][measure]["latency"]) for one in (theirs, row)]
            told = verdict["ratio"]["value"] if verdict["ratio"] and verdict["outcome"] != "same" else None
            said = "" if told else f" ({'parity failed' if not row['parity']['ok'] else 'no difference'})"
            yield Row(f"{model}, {row['id']}: {measure}{said}", *sides, told)


def _honesty(content: dict[str, Any]) -> Iterator[Row]:
    """bench-honesty: what `overlay bench` tells of stock against itself, and of a layer that gives a fifth less."""
    runs = content["runs"]
    quiet = sum(set(run["again"].values()) == {"same"} for run in runs)
    found = sum(run["planted"]["per_token"] == "slower" for run in runs)
    yield Row("stock against stock: told no difference in any measure", "", f"{quiet} of {len(runs)} runs")
    yield Row("planted slow-down: told as slower per token", "", f"{found} of {len(runs)} runs")
    ratios = sorted(run["planted_ratio"]["value"] for run in runs)
    yield Row("planted slow-down: ratio told, least to largest", "", f"{ratios[0]:.2f} to {ratios[-1]:.2f}")


def _interval(latency: dict[str, Any]) -> str:
    return f"{latency['p50'] * 1e3:.3g} ms [{latency['low'] * 1e3:.3g}, {latency['high'] * 1e3:.3g}]"


ROWS: dict[str, Callable[[dict[str, Any]], Iterator[Row]]] = {
    "amd-overlay.bench/1": _bench,
    "amd-overlay.bench-compiled/1": _compiled,
    "amd-overlay.bench-cpu/1": _seconds,
    "amd-overlay.bench-honesty/1": _honesty,
    "amd-overlay.bench-host/1": _host_before_plans,
    "amd-overlay.bench-host/2": _host,
    "amd-overlay.bench-launches/2": _launches,
    "amd-overlay.bench-memory/1": _memory,
    "amd-overlay.bench-training/1": _training,
}


def machine(content: dict[str, Any]) -> str:
    """The machine that a file names; files of before machines were recorded name none, and that is said."""
    found = content.get("machine")
    return UNKNOWN if not found else f"{found['device_name']} ({found['device']}), {found['platform']}"


def versions(content: dict[str, Any]) -> str:
    """torch and transformers, as the file tells them."""
    found = content.get("versions") or content.get("machine") or {}
    return ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers") if name in found) or UNKNOWN


def page(results: Path = RESULTS) -> str:
    """Return the page: one table per file, in the order of their names."""
    parts = [HEAD]
    for path in sorted(results.glob("*.json")):
        content = json.loads(path.read_bytes())
        title, schema = path.stem.replace("_", " "), content.get("schema", "no schema")
        parts.append(f"\n## {title}\n")
        if schema not in ROWS:
            parts.append(f"[{path.name}](../benchmarks/results/{path.name}), {schema}, {machine(content)}: no table.\n")
            continue
        note = (ROWS[schema].__doc__ or "").strip().splitlines()[0]
        command = content.get("command", "")
        parts.append(f"{note} Command: `{command if isinstance(command, str) else 'overlay ' + ' '.join(command)}`\n")
        parts.append(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for row in ROWS[schema](content):
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            link = f"[{path.name}](../benchmarks/results/{path.name})"
            cells = (row.what, row.stock, row.overlaid, ratio, machine(content), versions(content), link)
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it with what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when the page is not up to date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not what benchmarks/results says: run `make results-page`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
