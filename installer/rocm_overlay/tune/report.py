"""The coverage report: x of y lookups tuned, what is missing, and whether fusing helps or hurts this table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..console import facts, show, table
from .coverage import Coverage, Line, cover
from .device import Device
from .lookup import TableIndex, default_libtype
from .models import Model, read_model

SCHEMA = "amd-overlay.tune.report/1"
CHOICES = (frozenset[str](), frozenset({"qkv"}), frozenset({"gate_up"}), frozenset({"qkv", "gate_up"}))


@dataclass(frozen=True)
class Report:
    """A model's coverage as asked for, and under every choice of fusion."""

    model: Model
    device: Device
    dtype: str
    tp: int
    ladder: tuple[int, ...]
    rows: int
    asked: Coverage
    choices: tuple[Coverage, ...]
    advice: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "schema": SCHEMA,
            "model": self.model.name,
            "model_type": self.model.model_type,
            "gpu": str(self.device),
            **facts(self, "dtype tp advice"),
            "m_ladder": self.ladder,
            "device_rows": self.rows,
            "coverage": _summary(self.asked),
            "choices": [_summary(coverage) for coverage in self.choices],
            "shapes": [_line_json(line, self.device, self.dtype) for line in self.asked.lines],
            "notes": self.model.notes,
        }


def _summary(coverage: Coverage) -> dict[str, object]:
    return {
        **facts(coverage, "fused total exact found"),
        "weighted_exact": round(coverage.share_exact, 6),
        "weighted_found": round(coverage.share_found, 6),
        "states": coverage.states(),
    }


def _line_json(line: Line, device: Device, dtype: str) -> dict[str, object]:
    linear = line.linear
    return {
        **facts(linear, "role n k bias count kind"),
        **facts(line, "exact found"),
        "lookups": [
            {
                **facts(cell, "m state"),
                "found_m": cell.hit.m if cell.hit else None,
                "libtype": cell.hit.row.libtype
                if cell.hit
                else default_libtype(device, cell.m, linear.n, linear.k, dtype),
                "us": cell.hit.row.us if cell.hit and cell.hit.row.measured else None,
                "source": cell.hit.row.place if cell.hit else None,
            }
            for cell in line.cells
        ],
    }


def make_report(
    config: Path,
    index: TableIndex,
    *,
    ladder: Sequence[int],
    dtype: str,
    fused: frozenset[str],
    tp: int = 1,
    mix: Mapping[int, float] | None = None,
    assume: str | None = None,
) -> Report:
    """Return the report of a config.json against an index; a mix replaces the ladder by its own values of M."""
    values = tuple(mix) if mix else tuple(ladder)
    models = [read_model(config, fused=choice, tp=tp, assume=assume) for choice in CHOICES]
    choices = [cover(model, index, values, dtype, choice, mix) for model, choice in zip(models, CHOICES, strict=True)]
    at = CHOICES.index(fused)
    advice = advise(choices[at], choices, index)
    return Report(models[at], index.device, dtype, tp, values, len(index), choices[at], tuple(choices), advice)


def advise(asked: Coverage, choices: Sequence[Coverage], index: TableIndex) -> tuple[str, ...]:
    """Return what follows from the counts, one sentence each."""
    if not len(index):
        return (
            f"no row is for {index.device}: every product runs aiter's default, which is F.linear but for tiny shapes; "
            "leave USE_AITER_GEMM=0, or measure with `overlay tune run`",
        )
    by_choice = {frozenset(coverage.fused): coverage for coverage in choices}
    none, both = by_choice[frozenset()], by_choice[CHOICES[-1]]
    sentences = []
    for group in ("qkv", "gate_up"):
        alone = by_choice[frozenset({group})]
        if [line.linear for line in alone.lines] != [line.linear for line in none.lines]:
            sentences.append(_fusion_sentence(group, none, alone))
    best = max(choices, key=lambda c: (round(c.share_found, 9), len(c.fused)))
    if best.share_found == 0:
        return (
            f"no lookup of this model hits one of the {len(index)} rows for {index.device}, fused or not; "
            "leave USE_AITER_GEMM=0, or tune its shapes with `overlay tune run`",
        )
    sentences.append(
        f"best covered: --fused {','.join(best.fused) or 'none'} ({best.found} of {best.total} lookups, "
        f"{best.share_found:.0%} of weight bytes); all fused: {both.found} of {both.total} ({both.share_found:.0%})"
    )
    torch_rows = asked.states()["torch"]
    if torch_rows:
        sentences.append(f"{torch_rows} of {asked.found} found rows say torch: tuned, and F.linear all the same")
    sentences.append(
        "a row is not a gain: tuning all shapes has been seen to change nothing; compare with `overlay tune run --ab`"
    )
    return tuple(sentences)


def _fusion_sentence(group: str, apart: Coverage, together: Coverage) -> str:
    change = together.share_found - apart.share_found
    counts = f"{apart.found} of {apart.total} lookups apart, {together.found} of {together.total} fused"
    if abs(change) < 1e-9:
        return f"fusing {group} leaves the covered weight bytes unchanged ({counts})"
    verb = "gains" if change > 0 else "loses"
    return f"fusing {group} {verb} {abs(change):.0%} of weight bytes ({counts})"


def tell(report: Report) -> None:
    """Print the report: how much is tuned, a row per product, and what follows from it."""
    asked = report.asked
    show(
        f"{report.model.name} on {report.device}, {report.dtype}, TP {report.tp}, "
        f"fused: {','.join(asked.fused) or 'none'}",
        f"tuned: {asked.exact} of {asked.total} lookups with exact M, {asked.found} as aiter pads M "
        f"({asked.share_found:.1%} of weight bytes x M mix)",
        "",
    )
    marks = {"exact": "#", "padded": "+", "torch": "t", "unmeasured": "0", "miss": "."}
    rows = []
    for line in asked.lines:
        linear, total = line.linear, len(line.cells)
        numbers = (str(linear.n), str(linear.k), "yes" if linear.bias else "", str(linear.count))
        found = (f"{line.exact}/{total}", f"{line.found}/{total}", "".join(marks[cell.state] for cell in line.cells))
        rows.append((linear.role, *numbers, *found))
    table(("shape", "N", "K", "bias", "count", "exact", "found", "found by M"), rows)
    show("# exact  + padded  t torch won  0 not measured  . miss; M: " + " ".join(map(str, report.ladder)), "")
    show(*(f"- {sentence}" for sentence in report.advice), *(f"note: {note}" for note in report.model.notes))
