"""The router's choice and the experts of few tokens, against fp64 and against stock's own operations."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import amd_ops
from amd_ops.backends.triton import experts
from tests.ops.reference import close, gated

from .support import DTYPES, few, ran

TOKENS = experts.FEW_TOKENS


module = importlib.import_module("amd_ops.ops.moe")  # the package has a function of this name


@few(40)
@given(
    tokens=st.integers(1, 4),
    count=st.integers(1, 40),
    data=st.data(),
    renormalise=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from((0.1, 1.0, 30.0)),
)
def test_the_choice_is_that_of_stock(
    tokens: int, count: int, data: Any, renormalise: bool, dtype: torch.dtype, scale: float
) -> None:
    top_k = data.draw(st.integers(1, min(count, 8)))
    logits = (torch.randn(tokens, count) * scale).to(dtype)
    weights, ids = experts.launch_top_k(logits, top_k, renormalise, dtype, 32)
    shares = torch.softmax(logits.double(), -1)
    want, _ = torch.topk(shares, top_k, dim=-1)
    assert ids.dtype is torch.int32
    assert all(len(set(row)) == top_k for row in ids.tolist()), "an expert was chosen twice"
    torch.testing.assert_close(shares.gather(1, ids.long()), want, rtol=1e-5, atol=1e-12)
    if renormalise:
        want = want / want.sum(-1, keepdim=True)
    torch.testing.assert_close(
        weights.double(), want.to(dtype).double(), rtol=1e-2 if dtype is not torch.float32 else 1e-5, atol=1e-7
    )
    assert torch.equal(weights, weights.to(dtype).float()), "not rounded"


def test_equal_logits_are_taken_from_the_first_on_and_a_nan_stays_one() -> None:
    logits = torch.zeros(2, 6)
    logits[1, 3] = float("nan")
    weights, ids = experts.launch_top_k(logits, 3, True, torch.float32, 32)
    assert ids[0].tolist() == [0, 1, 2]
    assert weights[1].isnan().all()
    assert ((ids >= 0) & (ids < 6)).all()


def of_experts(hidden: Tensor, w1: Tensor, w2: Tensor, weights: Tensor, ids: Tensor, kind: str) -> Tensor:
    """fp64, pair by pair."""
    out = torch.zeros(hidden.shape, dtype=torch.float64)
    for token, row in enumerate(ids.tolist()):
        for slot, expert in enumerate(row):
            middle = gated((w1[expert].double() @ hidden[token].double())[None], kind)[0]
            out[token] += float(weights[token, slot]) * (w2[expert].double() @ middle)
    return out


@few(30)
@given(
    tokens=st.integers(1, 4),
    size=st.sampled_from((8, 40, 264)),
    middle=st.sampled_from((8, 24)),
    top_k=st.integers(1, 4),
    kind=st.sampled_from(("silu", "gelu", "gelu_tanh")),
    dtype=st.sampled_from(DTYPES),
    long=st.booleans(),
)
def test_experts_agree_with_fp64(
    asked: None, tokens: int, size: int, middle: int, top_k: int, kind: str, dtype: torch.dtype, long: bool
) -> None:
    hidden, w1 = torch.randn(tokens, size).to(dtype), (torch.randn(5, 2 * middle, size) / size**0.5).to(dtype)
    w2 = (torch.randn(5, size, middle) / middle**0.5).to(dtype)
    weights, ids = torch.rand(tokens, top_k), torch.stack([torch.randperm(5)[:top_k] for _ in range(tokens)])
    before = ran("moe")
    got = amd_ops.moe(hidden, w1, w2, weights, ids if long else ids.int(), activation=kind)
    assert ran("moe") == before + 1
    close(got, of_experts(hidden, w1, w2, weights, ids, kind), 4.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 3])
def test_clamped_experts_agree_with_the_formula(asked: None, tokens: int, dtype: torch.dtype) -> None:
    hidden = torch.randn(tokens, 40).to(dtype) * 4  # so that gates reach the limit
    args = [torch.randn(5, 40, 48) / 4, torch.randn(5, 48), torch.randn(5, 24, 40) / 5, torch.randn(5, 40)]
    weights, ids = torch.rand(tokens, 2).to(dtype), torch.tensor([[0, 4], [1, 2], [4, 3]])[:tokens]
    call = (hidden, *(one.to(dtype) for one in args), weights, ids)
    got = module.clamped_moe(*call)
    assert ran("clamped_moe") == 1
    want = module.eager_clamped_moe(*call, 1.702, 7.0)
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    assert (got.float() - want.float()).abs().max() <= tolerance * want.float().abs().max()


def test_many_tokens_and_gradients_are_left_to_torch_without_a_word(asked: None) -> None:
    """Strictly, too: groups of tokens are the better way there, no failure."""
    w1, w2 = torch.randn(4, 16, 8), torch.randn(4, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tokens, grad in ((TOKENS + 1, False), (2, True)):
            hidden = torch.randn(tokens, 8, requires_grad=grad)
            ids = torch.zeros(tokens, 1, dtype=torch.int32)
            with torch.set_grad_enabled(grad):
                amd_ops.moe(hidden, w1, w2, torch.ones(tokens, 1), ids)
    assert ran("moe") == 0


def test_the_public_router_takes_the_kernel(asked: None) -> None:
    weights, ids = module.softmax_top_k(torch.randn(3, 7), 2)
    assert ran("softmax_top_k") == 1
    assert weights.shape == ids.shape == (3, 2)


def test_a_probe_finds_wrong_experts(asked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = experts.Experts.started
    monkeypatch.setattr(experts.Experts, "started", lambda *args: right(*args) * 1.1)
    with pytest.raises(amd_ops.DeclinedError, match="disagrees"):
        amd_ops.moe(
            torch.randn(1, 8), torch.randn(4, 16, 8), torch.randn(4, 8, 8), torch.ones(1, 1), torch.zeros(1, 1).int()
        )
