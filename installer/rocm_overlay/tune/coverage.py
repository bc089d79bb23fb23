"""How much of a model's GEMMs a table serves: counted as aiter looks them up, weighted, fused against unfused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from .lookup import Hit, TableIndex
from .models import Linear, Model
from .shapes import rows_of


@dataclass(frozen=True)
class Cell:
    """One lookup: a Linear at one M."""

    m: int
    hit: Hit | None

    @property
    def exact(self) -> bool:
        return self.hit is not None and self.hit.level == "exact"

    @property
    def state(self) -> str:
        """Return miss, torch (tuned, but F.linear won), unmeasured, exact or padded."""
        if self.hit is None:
            return "miss"
        if self.hit.row.libtype == "torch":
            return "torch"
        if not self.hit.row.measured:
            return "unmeasured"
        return "exact" if self.exact else "padded"


@dataclass(frozen=True)
class Line:
    """A Linear and its lookups over the ladder."""

    linear: Linear
    cells: tuple[Cell, ...]

    @property
    def exact(self) -> int:
        return sum(cell.exact for cell in self.cells)

    @property
    def found(self) -> int:
        return sum(cell.hit is not None for cell in self.cells)


@dataclass(frozen=True)
class Coverage:
    """The lookups of one model under one choice of fusion. Shares are of weight bytes, over the mix of M."""

    fused: tuple[str, ...]
    lines: tuple[Line, ...]
    share_exact: float
    share_found: float

    @property
    def total(self) -> int:
        return sum(len(line.cells) for line in self.lines)

    @property
    def exact(self) -> int:
        return sum(line.exact for line in self.lines)

    @property
    def found(self) -> int:
        return sum(line.found for line in self.lines)

    def states(self) -> dict[str, int]:
        counts = dict.fromkeys(("exact", "padded", "torch", "unmeasured", "miss"), 0)
        for line in self.lines:
            for cell in line.cells:
                counts[cell.state] += 1
        return counts


def parse_mix(text: str) -> dict[int, float]:
    """Return the mix of M of ``1:0.7,16:0.3``; the shares are scaled to sum to one."""
    mix: dict[int, float] = {}
    try:
        for part in text.split(","):
            m, share = part.split(":")
            mix[int(m)] = mix.get(int(m), 0.0) + float(share)
    except ValueError:
        raise UsageError(
            "bad-mix", f"--m-mix {text!r} is not a mix", remedy="write M:share pairs, for example 1:0.7,16:0.3"
        ) from None
    if not mix or min(mix) < 1 or min(mix.values()) < 0 or not 0 < sum(mix.values()) < float("inf"):
        raise UsageError("bad-mix", f"--m-mix {text!r} needs M >= 1 and shares >= 0", remedy="for example 1:0.7,16:0.3")
    total = sum(mix.values())
    return {m: share / total for m, share in sorted(mix.items())}


def cover(
    model: Model,
    index: TableIndex,
    ladder: Sequence[int],
    dtype: str,
    fused: frozenset[str],
    mix: Mapping[int, float] | None = None,
) -> Coverage:
    """Return the coverage of a model read with the same ``fused``. Without a mix every M counts the same."""
    lines = tuple(_line(linear, index, ladder, dtype) for linear in model.linears)
    total = sum(linear.weights for linear in model.linears)
    exact = found = 0.0
    for line in lines:
        shares = _shares(line, mix)
        exact += line.linear.weights * sum(s * c.exact for s, c in zip(shares, line.cells, strict=True))
        found += line.linear.weights * sum(s * (c.hit is not None) for s, c in zip(shares, line.cells, strict=True))
    return Coverage(tuple(sorted(fused)), lines, exact / total, found / total)


def _line(linear: Linear, index: TableIndex, ladder: Sequence[int], dtype: str) -> Line:
    cells = [Cell(m, index.find(m, linear.n, linear.k, bias=linear.bias, dtype=dtype)) for m in rows_of(linear, ladder)]
    return Line(linear, tuple(cells))


def _shares(line: Line, mix: Mapping[int, float] | None) -> list[float]:
    """Return how much each cell counts. A vision tower has values of M of its own, which count alike."""
    if mix is None or line.linear.kind == "image":
        return [1 / len(line.cells)] * len(line.cells)
    return [mix.get(cell.m, 0.0) for cell in line.cells]
