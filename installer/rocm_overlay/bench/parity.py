"""Whether a cell computed what stock computed: a speed is only told of a right answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..shared import tolerances
from .matrix import STOCK, Cell
from .process import Process


@dataclass(frozen=True)
class Parity:
    """``max_abs`` and ``max_rel`` (against the largest value) of the outputs; tokens that agree from the first on."""

    ok: bool
    reason: str
    max_abs: float | None = None
    max_rel: float | None = None
    tokens: int | None = None
    tokens_equal: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def compare(ours: list[Process], stock: list[Process], dtype: str, cell: Cell) -> Parity:
    """Compare every process's values with those of stock's first one. Needs numpy, not torch.

    Values must be within the tolerance of the dtype; greedy tokens must all agree in fp32 (in half precision two
    nearly equal logits may swap, so there they are only counted).
    """
    if cell.name == STOCK and cell.build == "stock":
        return Parity(True, "it is the reference")
    if not ours or not stock or not stock[0].values:
        return Parity(False, "one of the two has no outputs")
    found = [_pair(one, stock[0], dtype) for one in ours]
    return next((one for one in found if not one.ok), found[0])


def _pair(ours: Process, stock: Process, dtype: str) -> Parity:
    from safetensors.numpy import load_file

    if not ours.values or not Path(ours.values).is_file():
        return Parity(False, "it left no outputs")
    mine, theirs = load_file(ours.values), load_file(str(stock.values))
    max_abs = max_rel = 0.0
    table = tolerances()
    allowed = table.tolerance(table.WHOLE_MODEL, dtype, "grad" if "grad_norm" in theirs else "value").relative
    for name, want in theirs.items():
        if name == "tokens":
            continue
        got = mine.get(name)
        if got is None or got.shape != want.shape:
            return Parity(False, f"{name} has another shape")
        gap = table.gap(want.astype("float64"), got.astype("float64"))
        if gap.nan:
            return Parity(False, f"{name} has NaN where stock has none, or the other way round")
        max_abs, max_rel = max(max_abs, gap.largest), max(max_rel, gap.relative())
    same, total = _prefix(mine, theirs)
    reason = ""
    if max_rel > allowed:
        reason = f"the outputs differ by {max_rel:.2e} of their largest value, allowed is {allowed:.0e} in {dtype}"
    elif dtype == "float32" and total is not None and same != total:
        reason = f"greedy tokens differ from number {same} on"
    return Parity(not reason, reason or "within tolerance", max_abs, max_rel, total, same)


def _prefix(mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[int | None, int | None]:
    """How many greedy tokens agree from the first on, over all sequences at once."""
    if "tokens" not in theirs:
        return None, None
    equal = (mine["tokens"] == theirs["tokens"]).all(axis=0)
    total = int(equal.shape[0])
    return (total if equal.all() else int(equal.argmin())), total
