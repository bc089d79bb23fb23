"""The routers' kernels against the classes of the installed transformers and against stock's formulas."""

from __future__ import annotations

import importlib
import types
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import amd_ops
from amd_ops.backends.triton import experts, router
from amd_ops.ops.router import stock_grouped_top_k, stock_top_k_softmax

from .support import DTYPES, few, ran

WAVE = 32
NOTHING = -float("inf")


def as_stock(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor], tolerance: float) -> None:
    """The same experts with the same weights; where stock leaves the order open, in any order."""
    (weights, ids), (exact, known) = got, want
    assert weights.dtype is exact.dtype
    assert ids.dtype is torch.int64
    order, other = ids.argsort(dim=1), known.argsort(dim=1)
    assert torch.equal(ids.gather(1, order), known.gather(1, other))
    if weights.shape == ids.shape:
        weights, exact = weights.gather(1, order), exact.gather(1, other)
    torch.testing.assert_close(weights, exact, rtol=tolerance, atol=tolerance)


def distinct(tokens: int, count: int, dtype: torch.dtype) -> Tensor:
    """Logits of which no two of a row are equal, in any dtype."""
    rows = [torch.randperm(count) for _ in range(tokens)]
    return (torch.stack(rows) / 8 - count / 16).to(dtype) if tokens else torch.empty(0, count, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_in_another_dtype_are_stocks_rounded(dtype: torch.dtype) -> None:
    logits = distinct(4, 9, torch.float32)
    weights, ids = router.launch_top_k_softmax(logits, 3, False, WAVE, dtype)
    assert weights.dtype is dtype
    as_stock((weights, ids), stock_top_k_softmax(logits, 3, False, dtype), 1e-6 if dtype is torch.float32 else 1e-2)


@few(20)
@given(
    tokens=st.integers(1, 5),
    count=st.integers(1, 40),
    data=st.data(),
    spread=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_the_softmax_of_the_chosen_is_stocks(
    tokens: int, count: int, data: Any, spread: bool, dtype: torch.dtype
) -> None:
    top_k = data.draw(st.integers(1, min(count, 8)))
    logits = distinct(tokens, count, dtype)
    got = router.launch_top_k_softmax(logits, top_k, spread, WAVE)
    as_stock(got, stock_top_k_softmax(logits, top_k, spread), 1e-6 if dtype is torch.float32 else 1e-2)
    assert torch.equal(got[1], torch.topk(logits, top_k, dim=-1)[1]), "another order than torch's"


@few(25)
@given(
    tokens=st.integers(1, 4),
    groups=st.integers(1, 6),
    size=st.integers(2, 9),
    data=st.data(),
    renormalise=st.booleans(),
    fill=st.sampled_from((0.0, NOTHING)),
    bias=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_the_choice_in_groups_is_stocks(
    tokens: int, groups: int, size: int, data: Any, renormalise: bool, fill: float, bias: torch.dtype
) -> None:
    kept = data.draw(st.integers(1, groups))
    top_k = data.draw(st.integers(1, min(kept * size, 8)))
    logits, shift = torch.randn(tokens, groups * size) * 2, (torch.randn(groups * size) * 0.3).to(bias)
    if fill == 0.0:
        shift = shift.abs()  # below zero, equal zeros would be chosen, in no order
    rest = (top_k, groups, kept, renormalise, 2.5, fill)
    got = router.launch_grouped_top_k(logits, shift, *rest, wave=WAVE)
    as_stock(got, stock_grouped_top_k(logits, shift, *rest), 1e-6)


def test_equal_logits_are_taken_from_the_first_on_and_as_often_as_in_stock() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, 3.0], [0.0] * 6])
    weights, ids = router.launch_top_k_softmax(logits, 3, False, WAVE)
    assert ids.tolist() == [[1, 2, 4], [0, 1, 2]]
    want = stock_top_k_softmax(logits, 3, False)
    assert torch.equal(logits.gather(1, ids), logits.gather(1, want[1])), "other values than torch takes"
    torch.testing.assert_close(weights, want[0])
    weights, ids = router.launch_grouped_top_k(logits, torch.zeros(6), 2, 3, 2, True, 1.0, NOTHING, wave=WAVE)
    assert ids.tolist() == [[2, 4], [0, 1]], "the groups of 3 and 2, and of 3 and 3"
    torch.testing.assert_close(weights, torch.full((2, 2), 0.5))


def test_masked_scores_below_which_the_others_fall_are_chosen_as_in_stock() -> None:
    """transformers 4 makes zeros of the other groups' scores: where every score left is negative, zeros win."""
    logits, bias = torch.randn(3, 8), torch.full((8,), -4.0)
    bias[4:] = -3.0
    got = router.launch_grouped_top_k(logits, bias, 2, 2, 1, True, 1.0, 0.0, wave=WAVE)
    assert (got[1] < 4).all(), "the group that was not kept has the zeros"
    assert (stock_grouped_top_k(logits, bias, 2, 2, 1, True, 1.0, 0.0)[1] < 4).all()


@pytest.mark.parametrize("spread", [False, True])
def test_a_nan_stays_one_as_in_stock_and_the_ids_in_range(spread: bool) -> None:
    logits = torch.randn(2, 6)
    logits[1, 3] = float("nan")
    got = router.launch_top_k_softmax(logits, 3, spread, WAVE)
    assert got[0][1].isnan().any()
    assert stock_top_k_softmax(logits, 3, spread)[0][1].isnan().any()
    assert not got[0][0].isnan().any()
    grouped = router.launch_grouped_top_k(logits, torch.zeros(6), 2, 2, 1, True, 1.0, NOTHING, wave=WAVE)
    assert grouped[0][1].isnan().all()
    assert stock_grouped_top_k(logits, torch.zeros(6), 2, 2, 1, True, 1.0, NOTHING)[0][1].isnan().any()
    for _, ids in (got, grouped):
        assert ((ids >= 0) & (ids < 6)).all()


@few(8)
@given(
    tokens=st.integers(1, 4),
    size=st.sampled_from((8, 40, 600)),
    count=st.integers(1, 20),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
)
def test_logits_are_added_in_fp32(
    asked: None, tokens: int, size: int, count: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    hidden, weight = torch.randn(tokens, size).to(dtypes[0]), torch.randn(count, size).to(dtypes[1])
    before = ran("router_logits")
    got = amd_ops.router_logits(hidden, weight)
    assert ran("router_logits") == before + 1
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), hidden.double() @ weight.double().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_routers_have_stocks_dtypes_where_they_are_asked_for(plain: bool, dtype: torch.dtype) -> None:
    weights, ids = experts.launch_top_k(distinct(3, 13, dtype), 4, True, dtype, WAVE, plain)
    assert (weights.dtype, ids.dtype) == ((dtype, torch.int64) if plain else (torch.float32, torch.int32))
    again, same = experts.launch_top_k(distinct(0, 13, dtype).new_empty(1, 13).zero_(), 2, True, dtype, WAVE, plain)
    torch.testing.assert_close(again.float(), torch.full((1, 2), 0.5))
    assert same.tolist() == [[0, 1]]


def test_what_the_kernels_do_not_take_is_declined_with_the_reason(asked: None) -> None:
    logits, bias = torch.randn(3, 12), torch.zeros(12)
    cases: list[tuple[Any, str]] = [
        (lambda: amd_ops.grouped_top_k(logits.bfloat16(), bias, 2, groups=3), "only fp32 scores"),
        (lambda: amd_ops.grouped_top_k(logits, bias, 2, groups=3, fill=1.0), "neither as zero nor as nothing"),
        (lambda: amd_ops.grouped_top_k(logits, bias, 6, groups=3), "those kept have less than k"),
        (lambda: amd_ops.grouped_top_k(logits, torch.zeros(24)[::2], 2), "not one dense number per expert"),
        (lambda: amd_ops.top_k_softmax(logits.T.contiguous().T, 2), "rows are not dense"),
        (lambda: amd_ops.router_logits(torch.randn(2, 8)[:, ::2], torch.randn(3, 4)), "is not dense"),
    ]
    for call, reason in cases:
        with pytest.raises(amd_ops.DeclinedError, match=reason):
            call()


def test_gradients_many_tokens_and_nothing_at_all_are_left_to_torch_without_a_word(asked: None) -> None:
    with torch.enable_grad():
        logits = torch.randn(3, 8, requires_grad=True)
        amd_ops.top_k_softmax(logits, 2)[0].sum().backward()
        amd_ops.grouped_top_k(logits, torch.zeros(8), 2, groups=2)[0].sum().backward()
    amd_ops.router_logits(torch.randn(experts.FEW_TOKENS + 1, 8), torch.randn(3, 8))
    assert amd_ops.top_k_softmax(torch.empty(0, 8), 2)[1].shape == (0, 2)
    assert amd_ops.grouped_top_k(torch.empty(0, 8), torch.zeros(8), 2)[1].shape == (0, 2)
    assert not [op for op in ("top_k_softmax", "grouped_top_k", "router_logits") if ran(op)]


def test_a_probe_finds_another_choice(asked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = router.launch_top_k_softmax
    monkeypatch.setattr(router, "launch_top_k_softmax", lambda *args: (right(*args)[0], 7 - right(*args)[1]))
    with pytest.raises(amd_ops.DeclinedError, match="chooses other experts"):
        amd_ops.top_k_softmax(torch.randn(2, 8), 2)


def stock(model: str, name: str, **config: Any) -> Any:
    """A router's class of the installed transformers, with weights that differ."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    made = getattr(module, name)(types.SimpleNamespace(**config))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpt_oss_routes_as_its_class(asked: None, dtype: torch.dtype, tokens: int) -> None:
    made = stock("gpt_oss", "GptOssTopKRouter", num_experts_per_tok=3, num_local_experts=7, hidden_size=16).to(dtype)
    hidden = torch.randn(tokens, 16).to(dtype)
    *_, scores, ids = made(hidden)
    logits = torch.nn.functional.linear(hidden, made.weight, made.bias)
    got = amd_ops.top_k_router(logits, 3, scores.shape != ids.shape)
    assert got is not None
    as_stock(got, (scores, ids), 1e-6 if dtype is torch.float32 else 1e-2)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_deepseek_v3_routes_as_its_class(asked: None, dtype: torch.dtype, tokens: int) -> None:
    sizes = {"num_experts_per_tok": 3, "n_group": 3, "topk_group": 2, "hidden_size": 16, "norm_topk_prob": True}
    sizes |= {"n_routed_experts": 15, "num_local_experts": 15}
    made = stock("deepseek_v3", "DeepseekV3TopkRouter", routed_scaling_factor=2.5, **sizes).to(dtype)
    made.e_score_correction_bias.copy_(torch.rand(15) * 0.2)
    hidden = torch.randn(tokens, 16).to(dtype)
    choose = getattr(made, "get_topk_indices", None)
    rest = (3, 3, 2, True, 2.5, NOTHING if choose is None else 0.0, choose)
    got = amd_ops.grouped_router(hidden, made.weight, made.e_score_correction_bias, *rest)
    assert got is not None
    logits, weights, ids = got
    first, second, *more = made(hidden)
    want = (second, more[0]) if more else (second, first)  # transformers 4 returns ids and weights
    as_stock((weights, ids), want, 1e-5)
    torch.testing.assert_close(logits, torch.nn.functional.linear(hidden.float(), made.weight.float()))


OF_THEIR_OWN = [
    (model, name)
    for model, name in (("mixtral", "MixtralTopKRouter"), ("qwen3_moe", "Qwen3MoeTopKRouter"))
    if hasattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)
]
if OF_THEIR_OWN:  # since transformers 5; before, the block of experts did it

    @pytest.mark.parametrize(("model", "name"), OF_THEIR_OWN)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_softmax_routers_route_as_their_class(asked: None, model: str, name: str, dtype: torch.dtype) -> None:
        sizes = {"num_local_experts": 11, "num_experts": 11, "norm_topk_prob": False, "num_experts_per_tok": 3}
        made = stock(model, name, hidden_size=16, **sizes).to(dtype)
        hidden = torch.randn(4, 16).to(dtype)
        logits, weights, ids = made(hidden)
        got = amd_ops.softmax_router(logits, 3, model == "mixtral", weights.dtype)
        assert got is not None
        as_stock(got, (weights, ids), 1e-6 if dtype is torch.float32 else 1e-2)
