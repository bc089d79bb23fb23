"""From raw samples to sentences that hold: percentiles, bootstrap intervals, and when a difference may be told.

The samples of one process are not independent of each other, so whole processes (rounds) are drawn first and samples
within them second. A cell is faster or slower than its stock cell only where three things agree: the two bootstrap
intervals do not overlap; the t interval of the paired log ratios, one per round, leaves out equality; and the
difference is larger than the one this machine shows between stock and stock again. Anything else is no difference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

DRAWS = 2000
LEVEL = 0.99
# Two-sided quantiles of Student's t at 99 %, by degrees of freedom (any table of the distribution).
_T99 = (63.66, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.25, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947)
_T99_MANY = 2.861
MIN_ROUNDS = 3

Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Summary:
    """Statistics of one measure. Values in seconds unless the measure says otherwise; ``low`` and ``high`` bound the
    median at 99 %.
    """

    count: int
    mean: float
    stdev: float
    cv: float
    p50: float
    p90: float
    p95: float
    p99: float
    min: float
    max: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Return plain values."""
        return asdict(self)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the linearly interpolated percentile; ``share`` in 0..1, at least one value."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarise(rounds: Rounds, seed: int = 0) -> Summary:
    """Describe the samples of all rounds together; the interval knows of the rounds."""
    values = [value for one in rounds for value in one]
    mean = statistics.fmean(values)
    stdev = statistics.stdev(values) if len(values) > 1 else 0.0
    low, high = interval(rounds, seed)
    return Summary(
        count=len(values),
        mean=mean,
        stdev=stdev,
        cv=stdev / mean if mean else 0.0,
        p50=percentile(values, 0.5),
        p90=percentile(values, 0.9),
        p95=percentile(values, 0.95),
        p99=percentile(values, 0.99),
        min=min(values),
        max=max(values),
        low=low,
        high=high,
    )


def interval(rounds: Rounds, seed: int = 0) -> tuple[float, float]:
    """Bootstrap the median of the rounds' medians at 99 %: rounds are drawn first, samples within each second."""
    import numpy

    draw = numpy.random.default_rng(seed)
    # medians[r, k, d]: the median of the d-th resample of round r for the k-th place of a draw.
    medians = numpy.stack([numpy.median(draw.choice(one, (len(rounds), DRAWS, len(one))), axis=2) for one in rounds])
    picked = draw.integers(len(rounds), size=(len(rounds), DRAWS))
    places, draws = numpy.indices(picked.shape)
    found = numpy.median(medians[picked, places, draws], axis=0)
    low, high = numpy.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Ratio:
    """A cell's median over its stock cell's, paired by round, with the t interval of the ratio at 99 %."""

    value: float
    low: float
    high: float


def ratio(cell: Rounds, stock: Rounds) -> Ratio | None:
    """Return the geometric mean of the rounds' ratios and its interval; None with fewer than two complete rounds."""
    logs = [
        math.log(statistics.median(ours) / statistics.median(theirs))
        for ours, theirs in zip(cell, stock, strict=False)
        if ours and theirs
    ]
    if len(logs) < 2:
        return None
    middle = statistics.fmean(logs)
    quantile = _T99[len(logs) - 2] if len(logs) - 2 < len(_T99) else _T99_MANY
    half = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


@dataclass(frozen=True)
class Verdict:
    """``faster``, ``slower`` or ``same`` (no difference may be told), and why."""

    outcome: str
    reason: str
    ratio: Ratio | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "ratio": None if self.ratio is None else asdict(self.ratio),
        }


def judge(cell: Rounds, stock: Rounds, noise: float) -> Verdict:
    """Decide about times (less is better). ``noise`` is the largest |log ratio| between stock and stock again."""
    found = ratio(cell, stock)
    if found is None or min(len(cell), len(stock)) < MIN_ROUNDS:
        return Verdict("same", f"fewer than {MIN_ROUNDS} rounds were measured", found)
    ours, theirs = interval(cell), interval(stock, 1)
    if ours[0] <= theirs[1] and theirs[0] <= ours[1]:
        return Verdict("same", "the intervals of the medians overlap", found)
    if found.low <= 1 <= found.high:
        return Verdict("same", "the interval of the paired ratio includes 1", found)
    if abs(math.log(found.value)) <= noise:
        return Verdict("same", "it is within the difference between stock and stock again", found)
    return Verdict("faster" if found.value < 1 else "slower", "the intervals do not overlap", found)


def noise_of(again: Rounds, stock: Rounds) -> float:
    """Return the largest |log ratio| of a round between stock and stock again: what nothing looks like here."""
    logs = [
        abs(math.log(statistics.median(one) / statistics.median(other)))
        for one, other in zip(again, stock, strict=False)
        if one and other
    ]
    return max(logs, default=0.0)
