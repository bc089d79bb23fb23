"""What may be said of samples, and what may not."""

from __future__ import annotations

import math
import statistics as reference

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rocm_overlay.bench.statistics import interval, judge, noise_of, percentile, ratio, summarise

from .samples import noisy_rounds

FLOATS = st.floats(1e-6, 1e3)
ROUNDS = st.lists(st.lists(FLOATS, min_size=1, max_size=6), min_size=1, max_size=4)


@given(st.lists(FLOATS, min_size=1, max_size=40), st.floats(0, 1))
def test_percentiles_are_those_of_numpy(values: list[float], share: float) -> None:
    import numpy

    assert percentile(values, share) == pytest.approx(float(numpy.percentile(values, share * 100)))


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
    assert judge(other, stock, noise_of(again, stock)).outcome == "same"


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_down_of_a_fifth_is_found(seed: int) -> None:
    stock, again = noisy_rounds(2 * seed), noisy_rounds(2 * seed + 1)
    slow = noisy_rounds(1000 + seed, slow=1.2)
    found = judge(slow, stock, noise_of(again, stock))
    assert found.outcome == "slower"
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1.2, rel=0.05)
    assert judge(stock, slow, noise_of(again, stock)).outcome == "faster"


def test_two_rounds_are_too_few_for_any_claim() -> None:
    found = judge([[1.0] * 9] * 2, [[2.0] * 9] * 2, 0.0)
    assert found.outcome == "same"
    assert "rounds" in found.reason


def test_a_difference_within_the_noise_of_stock_against_itself_is_none() -> None:
    stock, cell = [[1.0, 1.001, 1.002]] * 5, [[1.1, 1.101, 1.102]] * 5
    assert judge(cell, stock, 0.0).outcome == "slower"
    assert judge(cell, stock, math.log(1.2)).outcome == "same"


def test_a_ratio_is_paired_by_round() -> None:
    # The machine slows down by half in the second round, for both alike: the ratio does not care.
    found = ratio([[1.1], [1.65], [1.1]], [[1.0], [1.5], [1.0]])
    assert found is not None
    assert found.value == pytest.approx(1.1)
    assert found.low == pytest.approx(found.high)
    assert ratio([[1.0]], [[1.0]]) is None
