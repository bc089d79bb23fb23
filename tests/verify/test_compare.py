"""The judge: what counts as equal, as near enough, and as a deviation."""

from __future__ import annotations

import functools
import itertools
import json
import math

import pytest
import torch
from rocm_overlay.verify.compare import Verdict, chip, difference, first_difference, judge, same_bits

from amd_ops import tolerances
from tests.doubles.aiter import fake_aiter, rounding

ONE = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def verdict(
    reference: torch.Tensor,
    found: torch.Tensor,
    *,
    name: str = "logits",
    dtype: str = "float32",
    bitwise: bool = False,
) -> Verdict:
    return judge({name: reference}, {name: found}, tier="torch", dtype=dtype, bitwise=bitwise)


def test_bits_are_more_than_values() -> None:
    assert same_bits(ONE, ONE.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same_bits(ONE, ONE.double())
    assert same_bits(torch.tensor([math.nan]), torch.tensor([math.nan]))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert same_bits(ONE.to(dtype), ONE.to(dtype))
        assert not same_bits(ONE.to(dtype), (ONE + 1).to(dtype))


def test_off_asks_for_every_bit_and_on_for_the_table() -> None:
    near = ONE * (1 + 3e-6)
    assert not verdict(ONE, near, bitwise=True).ok
    assert verdict(ONE, near).ok
    assert not verdict(ONE, near).bitwise
    far = verdict(ONE, ONE * (1 + 3e-5))
    assert not far.ok
    assert far.worst.max_rel == pytest.approx(3e-5, rel=0.01)
    assert far.worst.max_abs == pytest.approx(1.2e-4, rel=0.01)
    assert far.worst.cosine == pytest.approx(1.0)
    assert far.allowed == 1e-5


def test_relative_means_relative_to_the_largest_value() -> None:
    """A tiny value beside large ones may be off by more than itself: its rounding has the size of the large ones'."""
    assert verdict(torch.tensor([1e-9, 1.0]), torch.tensor([1e-7, 1.0])).ok


@pytest.mark.parametrize("found", [ONE.double(), ONE[:1], ONE.to(torch.bfloat16)])
def test_another_shape_or_dtype_is_a_deviation(found: torch.Tensor) -> None:
    outcome = verdict(ONE, found)
    assert not outcome.ok
    assert outcome.worst.problem is not None
    assert "expected (2, 2) torch.float32" in outcome.worst.problem


def test_nan_values_count_only_when_they_differ() -> None:
    with_nan = torch.tensor([1.0, math.nan, 3.0])
    assert verdict(with_nan, with_nan.clone()).ok
    assert not verdict(with_nan, torch.tensor([1.0, 2.0, 3.0])).ok
    assert (
        verdict(torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan])).worst.problem
        == "NaN values in the candidate only"
    )
    assert verdict(torch.tensor([math.nan]), torch.tensor([math.nan])).ok


def test_infinities() -> None:
    a = torch.tensor([1.0, math.inf, -math.inf])
    assert difference("x", a, a.clone()).max_abs == 0.0
    assert not verdict(a, torch.tensor([1.0, math.inf, math.inf])).ok
    assert not verdict(a, torch.tensor([1.0, 5.0, -math.inf])).ok


VALUES = [0.0, -0.0, 1e-30, 1.0, 2.0, -3.5, math.inf, -math.inf, math.nan]


def test_one_measure_for_numpy_and_for_torch() -> None:
    numpy = pytest.importorskip("numpy")
    for size in (0, 1, 3):
        for want in itertools.islice(itertools.product(VALUES, repeat=size), 0, None, 7):
            for got in itertools.islice(itertools.product(VALUES, repeat=size), 0, None, 11):
                ours = tolerances.gap(torch.tensor(want, dtype=torch.float64), torch.tensor(got, dtype=torch.float64))
                assert ours == tolerances.gap(numpy.array(want, "float64"), numpy.array(got, "float64")), (want, got)
                one_sided = any(map(lambda a, b: math.isnan(a) != math.isnan(b), want, got))
                unequal = [abs(a - b) for a, b in zip(want, got, strict=True) if a != b and not math.isnan(a)]
                assert ours.largest == (math.inf if one_sided else max(unequal, default=0.0))
                finite = [abs(one) for one in want if math.isfinite(one)]
                assert one_sided or ours.scale == max(finite, default=0.0)


def test_all_zero_reference() -> None:
    zero = torch.zeros(3)
    assert verdict(zero, zero.clone()).ok
    assert not verdict(zero, torch.tensor([0.0, 1e-30, 0.0])).ok


def test_gradients_have_a_row_of_their_own() -> None:
    near = ONE * (1 + 1.5e-5)
    assert not verdict(ONE, near).ok
    assert verdict(ONE, near, name="grad.weight").ok
    assert not verdict(ONE, ONE * 1.01, name="grad.weight").ok


def test_positions_of_padding_count_only_bitwise() -> None:
    outcome = verdict(ONE, ONE + 5, name="pads_left", bitwise=True)
    assert not outcome.ok
    both = judge(
        {"logits": ONE, "pads_left": ONE},
        {"logits": ONE, "pads_left": ONE + 5},
        tier="torch",
        dtype="float32",
        bitwise=False,
    )
    assert both.ok
    assert both.worst.name == "logits"


def test_a_tensor_on_one_side_only_is_a_deviation() -> None:
    outcome = judge({"logits": ONE}, {"logits": ONE, "more": ONE}, tier="torch", dtype="float32", bitwise=False)
    assert not outcome.ok
    assert outcome.worst.name == "more"


TOKENS = torch.tensor([[5, 6, 7], [5, 8, 9]])
OTHER = torch.tensor([[5, 6, 7], [5, 3, 9]])


def logits_for(gap: float) -> torch.Tensor:
    """Scores [2, 3, 10] in which tokens 8 and 3 differ by ``gap`` at row 1, position 1; the largest score is 10."""
    scores = torch.zeros(2, 3, 10)
    scores[..., 0] = 10.0
    scores[1, 1, 8], scores[1, 1, 3] = 9.0, 9.0 - gap
    return scores


def test_the_first_differing_token_is_the_earliest_of_all_rows() -> None:
    assert first_difference(TOKENS, TOKENS) is None
    assert first_difference(TOKENS, OTHER) == (1, 1)
    late = TOKENS.clone()
    late[0, 2], late[1, 1] = 0, 0
    assert first_difference(TOKENS, late) == (1, 1)


@pytest.mark.parametrize(
    ("dtype", "gap", "accepted"), [("bfloat16", 0.5, True), ("bfloat16", 5.0, False), ("float32", 0.0, False)]
)
def test_a_token_may_differ_only_in_half_precision_and_only_at_a_near_tie(
    dtype: str, gap: float, accepted: bool
) -> None:
    scores = logits_for(gap)
    outcome = judge(
        {"tokens": TOKENS, "logits": scores}, {"tokens": OTHER, "logits": scores.clone()},
        tier="torch", dtype=dtype, bitwise=False,
    )  # fmt: skip
    assert outcome.ok is accepted
    assert outcome.tokens is not None
    assert outcome.tokens.first_token == (1, 1)
    assert outcome.tokens.near_tie is (accepted and dtype != "float32")


def test_a_draw_must_be_equal_in_float32_and_its_scores_up_to_there_always() -> None:
    scores, after = logits_for(0.1), logits_for(0.1)
    after[:, 2] += 100.0
    reference, found = {"drawn": TOKENS, "logits": scores}, {"drawn": OTHER, "logits": after}
    assert judge(reference, found, tier="torch", dtype="bfloat16", bitwise=False).ok
    assert not judge(reference, found, tier="torch", dtype="float32", bitwise=False).ok
    after[:, 0] += 100.0
    assert not judge(reference, found, tier="torch", dtype="bfloat16", bitwise=False).ok


def test_scores_after_the_first_differing_token_are_not_compared() -> None:
    """They answer another prompt. Those up to it still are."""
    scores, after = logits_for(0.1), logits_for(0.1)
    after[:, 2] += 100.0
    reference = {"tokens": TOKENS, "logits": scores}
    assert judge(reference, {"tokens": OTHER, "logits": after}, tier="torch", dtype="bfloat16", bitwise=False).ok
    assert not judge(reference, {"tokens": TOKENS, "logits": after}, tier="torch", dtype="bfloat16", bitwise=False).ok
    before = logits_for(0.1)
    before[:, 0] += 100.0
    assert not judge(reference, {"tokens": OTHER, "logits": before}, tier="torch", dtype="bfloat16", bitwise=False).ok


def test_what_comes_from_quantised_values_points_the_same_way() -> None:
    tokens = torch.tensor([[1, 2, 3]])
    a, near, far = torch.tensor([[[1.0, 0.0]] * 3]), torch.tensor([[[1.0, 0.1]] * 3]), torch.tensor([[[1.0, 0.3]] * 3])

    def holds(logits: torch.Tensor, found: torch.Tensor, *, bitwise: bool = False) -> bool:
        want = {"codes.tokens": tokens, "codes.logits": a}
        got = {"codes.tokens": found, "codes.logits": logits}
        return judge(want, got, tier="torch", dtype="float32", bitwise=bitwise).ok

    assert holds(a, tokens, bitwise=True)
    assert holds(near, tokens)
    assert not holds(near, tokens, bitwise=True)
    assert not holds(far, tokens)
    other = torch.tensor([[1, 9, 3]])
    assert not holds(a, other, bitwise=True)
    assert holds(torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]]), other), "another prompt from there on"
    assert not holds(torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]]), other)


def test_every_dtype_has_both_rows_with_a_reason() -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        for kind in ("value", "grad"):
            row = tolerances.tolerance(tolerances.WHOLE_MODEL, dtype, kind, tier="any tier")
            assert 0 < row.relative < 1
            assert len(row.reason) > 20
    with pytest.raises(KeyError):
        tolerances.tolerance(tolerances.WHOLE_MODEL, "int8")


def test_a_report_is_strict_json() -> None:
    """JSON has no infinity: a shape that differs has no number at all."""
    outcome = verdict(ONE, ONE[:1])
    assert outcome.worst.max_rel == math.inf
    text = json.dumps(outcome.as_json(), allow_nan=False)
    assert json.loads(text)["worst"]["max_rel"] is None


def test_a_near_tie_does_not_hide_the_worst_value() -> None:
    scores = logits_for(0.1)
    outcome = judge(
        {"tokens": TOKENS, "logits": scores},
        {"tokens": OTHER, "logits": scores * 1.01},
        tier="torch",
        dtype="bfloat16",
        bitwise=False,
    )
    assert outcome.ok
    assert outcome.worst.name == "logits"
    assert outcome.worst.max_rel == pytest.approx(0.01, rel=0.01)


def test_a_chip_whose_kernels_cut_is_allowed_twice_a_rounding_and_the_shift() -> None:
    """In bfloat16, where aiter ran: by the table of the doubles, and nowhere else."""
    whole = functools.partial(tolerances.tolerance, tolerances.WHOLE_MODEL)
    plain = whole("bfloat16").relative
    for tier, arch, dtype in (
        ("torch", "gfx942", "bfloat16"),
        ("aiter", "gfx950", "bfloat16"),
        ("aiter", "", "bfloat16"),
    ):
        assert whole(dtype, tier=tier, arch=arch).relative == plain
    cut = whole("bfloat16", tier="aiter", arch="gfx942")
    assert cut.relative == pytest.approx(2 * plain + 2 * tolerances.CUT_SHIFT)
    assert "cut" in cut.reason
    assert whole("bfloat16", tier="any", arch="gfx942") == cut
    half = whole("float16", tier="aiter", arch="gfx942")
    assert half == whole("float16")
    assert pytest.approx(rounding.BIAS, rel=0.02) == tolerances.CUT_SHIFT
    assert all(
        rounding.truncates(arch, "norm") == arch.startswith(tolerances.CUTTING_CHIPS) for arch in ("gfx942", "gfx950")
    )


def test_the_chip_is_that_of_the_process() -> None:
    off = torch.full((4,), 1.1)
    for arch, ok in (("gfx942", True), ("gfx950", False)):
        with fake_aiter("v0.1.20.post1", arch, 304):
            assert chip() == arch
            one = {"logits": torch.ones(4, dtype=torch.bfloat16)}
            found = {"logits": off.bfloat16()}
            assert judge(one, found, tier="aiter", dtype="bfloat16", bitwise=False).ok is ok
    assert chip() == ""
