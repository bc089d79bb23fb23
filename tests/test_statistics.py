"""What may be said of samples, and what may not."""

from __future__ import annotations

import doctest
import math
import statistics as reference

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rocm_overlay import statistics
from rocm_overlay.statistics import faster, interval, log_ratios, percentile, summarise

from tests.bench.samples import noisy_rounds

FLOATS = st.floats(1e-6, 1e3)
ROUNDS = st.lists(st.lists(FLOATS, min_size=1, max_size=6), min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=40), st.floats(0, 1))
def test_percentiles_are_those_of_numpy(values: list[float], share: float) -> None:
    import numpy

    assert percentile(values, share) == pytest.approx(float(numpy.percentile(values, share * 100)))


@settings(deadline=None)
@given(ROUNDS)
def test_a_summary_keeps_its_order(rounds: list[list[float]]) -> None:
    found = summarise(rounds)
    values = [value for one in rounds for value in one]
    assert found.count == len(values)
    assert found.min <= found.p50 <= found.p90 <= found.p95 <= found.p99 <= found.max
    assert found.p50 == pytest.approx(reference.median(values))
    assert found.min <= found.low <= found.high <= found.max


def test_the_interval_knows_that_samples_of_one_process_hang_together() -> None:
    # Three processes that disagree: a thousand samples in each do not make the median any surer.
    rounds = [[1.0] * 1000, [1.1] * 1000, [1.2] * 1000]
    low, high = interval(rounds)
    assert low == 1.0
    assert high == 1.2


@pytest.mark.parametrize("seed", range(20))
def test_pure_noise_is_no_difference(seed: int) -> None:
    stock, again, other = (noisy_rounds(3 * seed + k) for k in range(3))
    assert faster(other, stock, log_ratios(again, stock)).outcome == "same"


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_down_of_a_fifth_is_found(seed: int) -> None:
    stock, again = noisy_rounds(2 * seed), noisy_rounds(2 * seed + 1)
    slow = noisy_rounds(1000 + seed, slow=1.2)
    noise = log_ratios(again, stock)
    found = faster(slow, stock, noise, tests=10)
    assert found.outcome == "slower"
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1.2, rel=0.05)
    assert 1 < found.ratio.low < found.ratio.value < found.ratio.high
    assert faster(stock, slow, noise, tests=10).outcome == "faster"


def test_two_rounds_are_too_few_for_any_claim() -> None:
    found = faster([[1.0] * 9] * 2, [[2.0] * 9] * 2)
    assert found.outcome == "same"
    assert "rounds" in found.reason


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0], ids=str)
@pytest.mark.parametrize("place", ["samples", "baseline", "noise"])
def test_of_a_sample_that_is_no_time_nothing_is_said(place: str, value: float) -> None:
    good, half = [[1.0, 1.01, 1.02]] * 5, [[0.5, 0.501, 0.502]] * 5
    assert faster(half, good, log_ratios(good, good)).outcome == "faster"
    given = {"samples": half, "baseline": good, "noise": good}
    given[place] = [[*given[place][0][:2], value], *given[place][1:]]
    found = faster(given["samples"], given["baseline"], log_ratios(given["noise"], good))
    assert (found.outcome, found.ratio) == ("same", None)
    assert "no time" in found.reason


def test_times_of_any_size_are_compared() -> None:
    assert faster([[1e-300]] * 5, [[1e300]] * 5).outcome == "faster"


def test_a_difference_within_the_noise_of_stock_against_itself_is_none() -> None:
    stock, cell = [[1.0, 1.001, 1.002]] * 5, [[1.1, 1.101, 1.102]] * 5
    assert faster(cell, stock).outcome == "slower"
    found = faster(cell, stock, [math.log(1.2)] * 5)
    assert (found.outcome, found.reason) == ("same", "the baseline differs from itself as much")
    assert faster(cell, stock, [math.log(0.8)] * 5).outcome == "same", "noise knows no direction"


def test_a_ratio_is_paired_by_round() -> None:
    # The machine slows down by half in the second round, for both alike: the ratio does not care.
    found = faster([[1.1], [1.65], [1.1]], [[1.0], [1.5], [1.0]]).ratio
    assert found is not None
    assert found.value == pytest.approx(1.1)
    assert found.low == pytest.approx(found.high)
    # Where one side lacks the second round, the third is still compared with the third.
    assert log_ratios([[1.1], [], [2.2]], [[1.0], [1.5], [2.0]]) == pytest.approx([math.log(1.1)] * 2)


def test_the_more_comparisons_the_more_it_takes() -> None:
    stock, cell = [[1.0], [1.01], [1.02], [1.0]], [[1.05], [1.04], [1.07], [1.04]]
    assert [faster(cell, stock, tests=tests).outcome for tests in (1, 1000)] == ["slower", "same"]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 13, 28])
@pytest.mark.parametrize("t", [0.1, 1.0, 3.0, 9.0])
def test_student_s_distribution_is_its_density_summed_up(freedom: int, t: float) -> None:
    import numpy

    x = numpy.linspace(-t, t, 200_001)
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    inside = numpy.trapezoid(scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x)
    tails = statistics._tails(t, freedom)
    assert tails == pytest.approx(1 - inside, abs=1e-7)
    assert statistics._quantile(freedom, tails) == pytest.approx(t, rel=1e-6)


def test_the_example_holds() -> None:
    assert doctest.testmod(statistics) == (0, 2)
