"""Compute percentiles and bootstrap intervals of samples, and decide what is "faster" by one rule.

The samples of one process are not independent of each other, so whole rounds are drawn first and samples within them
second. `faster` is the only place that decides: `bench`, `bench compare`, `qualify` and the A/B of `tune run` ask it.
Needs the standard library, `summarise` numpy as well.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

DRAWS = 2000
LEVEL = 0.99
MIN_ROUNDS = 3
MANY_ROUNDS = 10

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


# -- the rule


@dataclass(frozen=True)
class Ratio:
    """Time over the baseline's, the geometric mean of the rounds' ratios, with its interval at the rule's level."""

    value: float
    low: float
    high: float


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


def log_ratios(samples: Rounds, baseline: Rounds) -> list[float]:
    """Return the log of the ratio of the medians, round by round; rounds that one side lacks are left out.

    A round with a value that is no time (not above zero, not finite) gives NaN: nothing can be said of it.
    """
    return [_log(ours) - _log(theirs) for ours, theirs in zip(samples, baseline, strict=False) if ours and theirs]


def _log(times: Sequence[float]) -> float:
    """Return the log of the median; NaN where one of them is no time, which a median would hide."""
    return math.log(statistics.median(times)) if all(0 < one < math.inf for one in times) else math.nan


def faster(samples: Rounds, baseline: Rounds, noise: Sequence[float] = (), *, tests: int = 1) -> Verdict:
    """Decide whether times (less is better) are faster or slower than a baseline's, or nothing may be said.

    Two things must agree. The t interval of the paired log ratios leaves out equality, at a level of 99 % for all
    ``tests`` comparisons of a report or profile together (Bonferroni); its spread is that of the ratios and of the
    noise, pooled, and never less than their own. And the bootstrap interval of the ratios lies beyond that of the
    noise, which reaches as far to either side of equality as it does to one. Of ten and more rounds a fifth is left out
    at either end.

    Args:
        samples, baseline: one list of times per round; the rounds of both were measured side by side.
        noise: `log_ratios` of the baseline against a second baseline: what no difference looks like on this machine.
        tests: how many comparisons are made in all.

    Example:
        >>> old, again, new = [[2.0], [2.1], [2.0]], [[2.02], [2.1], [1.99]], [[1.0], [1.04], [1.01]]
        >>> faster(new, old, log_ratios(again, old)).outcome
        'faster'
    """
    logs = log_ratios(samples, baseline)
    if len(logs) < MIN_ROUNDS:
        return Verdict("same", f"fewer than {MIN_ROUNDS} rounds were measured")
    if not all(map(math.isfinite, (*logs, *noise))):
        return Verdict("same", "a sample is no time: zero, negative, infinite or no number")
    ours, theirs = _spread(logs), _spread(noise)
    middle, freedom = _mean(logs), ours.freedom + theirs.freedom
    pooled = (ours.freedom * ours.variance + theirs.freedom * theirs.variance) / freedom
    half = _quantile(freedom, (1 - LEVEL) / max(tests, 1)) * math.sqrt(max(ours.variance, pooled) / ours.kept)
    found = Ratio(math.exp(middle), math.exp(middle - half), math.exp(middle + half))
    if abs(middle) <= half:
        return Verdict("same", "the interval of the ratio includes 1", found)
    low, high = bootstrap(logs)
    reach = max(map(abs, bootstrap(noise)))
    if low <= reach and high >= -reach:
        return Verdict("same", "the baseline differs from itself as much", found)
    said = f"beyond the noise at {LEVEL:.0%}" + (f" for {tests} comparisons together" if tests > 1 else "")
    return Verdict("faster" if middle < 0 else "slower", said, found)


def bootstrap(logs: Sequence[float]) -> tuple[float, float]:
    """Return the 99 % interval of the mean over drawn rounds; of nothing (0, 0)."""
    if not logs:
        return 0.0, 0.0
    draw = random.Random(0)
    means = [_mean(draw.choices(logs, k=len(logs))) for _ in range(DRAWS)]
    return percentile(means, (1 - LEVEL) / 2), percentile(means, (1 + LEVEL) / 2)


def _cut(count: int) -> int:
    """Return how many rounds are left out at either end: a fifth of many, for a neighbour disturbs some of them."""
    return count // 5 if count >= MANY_ROUNDS else 0


def _mean(logs: Sequence[float]) -> float:
    """Return the mean without the rounds at the ends."""
    cut = _cut(len(logs))
    return statistics.fmean(sorted(logs)[cut : len(logs) - cut])


@dataclass(frozen=True)
class _Spread:
    """``variance`` of a round, degrees of freedom, and how many rounds the mean is of."""

    variance: float
    freedom: int
    kept: int


def _spread(logs: Sequence[float]) -> _Spread:
    """Return the spread of a mean without the rounds at the ends (Yuen 1974: from the values brought in to them)."""
    count = len(logs)
    if count < 2:
        return _Spread(0.0, 0, count)
    cut = _cut(count)
    ordered = sorted(logs)
    kept = count - 2 * cut
    brought_in = [ordered[cut]] * cut + ordered[cut : count - cut] + [ordered[count - cut - 1]] * cut
    return _Spread(statistics.variance(brought_in) * (count - 1) / (kept - 1), kept - 1, kept)


@lru_cache(maxsize=1024)
def _quantile(freedom: int, share: float) -> float:
    """Return the t beyond which Student's distribution has ``share`` of its mass, both tails together."""
    low, high = 0.0, 1.0
    while _tails(high, freedom) > share:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _tails(middle, freedom) > share else (low, middle)
    return high


def _tails(t: float, freedom: int) -> float:
    """Return the mass of Student's distribution beyond -t and t, from its closed form for whole degrees of freedom
    (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = freedom % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    if odd:
        total = 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))
        return 1 - total
    return 1 - sine * total
