"""Mixture of experts against fp64: no token, one token, experts that get none; and a router that chooses as stock."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import amd_ops
from amd_ops.ops.activation import silu_and_mul
from amd_ops.ops.moe import eager_moe, torch_moe

from .reference import close, gated

moe_file = importlib.import_module("amd_ops.ops.moe")  # the package's attribute of that name is the function
DTYPES = (torch.float32, torch.bfloat16)


def reference(hidden: Tensor, w1: Tensor, w2: Tensor, weight: Tensor, ids: Tensor, kind: str) -> Tensor:
    """Token by token, choice by choice, in fp64."""
    out = torch.zeros(hidden.shape, dtype=torch.float64)
    for token in range(hidden.shape[0]):
        for slot in range(ids.shape[1]):
            expert = int(ids[token, slot])
            middle = gated(w1[expert].double() @ hidden[token].double(), kind)
            out[token] += weight[token, slot].double() * (w2[expert].double() @ middle)
    return out


def problem(tokens: int, experts: int, chosen: int, dtype: torch.dtype, only: int | None = None) -> tuple[Tensor, ...]:
    hidden, width = 16, 24
    ids = torch.stack([torch.randperm(experts)[:chosen] for _ in range(tokens)]) if tokens else torch.zeros(0, chosen)
    ids = ids.to(torch.int32)
    if only is not None:
        ids = ids % only  # the experts above get no token; one may be chosen twice
    return (
        torch.randn(tokens, hidden).to(dtype),
        (torch.randn(experts, 2 * width, hidden) * hidden**-0.5).to(dtype),
        (torch.randn(experts, hidden, width) * width**-0.5).to(dtype),
        torch.rand(tokens, chosen) + 0.1,
        ids,
    )


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 7),
    experts=st.integers(1, 6),
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(("silu", "gelu", "gelu_tanh")),
    tier=st.sampled_from(("torch", "eager")),
)
def test_every_tier_agrees_with_fp64(
    tokens: int, experts: int, data: Any, dtype: torch.dtype, kind: str, tier: str
) -> None:
    chosen = data.draw(st.integers(1, experts))
    only = data.draw(st.sampled_from((None, 1)))
    args = problem(tokens, experts, chosen, dtype, only)
    with amd_ops.override(tiers=tier):
        out = amd_ops.moe(*args, activation=kind)
    assert out.dtype is dtype
    close(out, reference(*args, kind), 6.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("only", [None, 2])
def test_the_grouped_gemm_agrees_too(dtype: torch.dtype, only: int | None) -> None:
    """Used on GPUs alone, where it is proved first; torch can run it on a CPU."""
    if moe_file._grouped_mm is None:
        pytest.skip("this torch has no grouped GEMM")
    args = problem(9, 5, 2, dtype, only)
    close(moe_file._grouped(*args, silu_and_mul), reference(*args, "silu"), 6.0)
    assert moe_file._prove_grouped(torch.device("cpu"), dtype) == ""


def test_a_wrong_grouped_gemm_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        groups = zip(a.tensor_split(offs.tolist()[:-1]), b.flip(0), strict=True)
        return torch.cat([rows @ weight for rows, weight in groups])

    monkeypatch.setattr(moe_file, "_grouped_mm", wrong)
    assert "off on this device" in moe_file._prove_grouped(torch.device("cpu"), torch.float32)

    def missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(moe_file, "_grouped_mm", missing)
    assert "raised NotImplementedError" in moe_file._prove_grouped(torch.device("cpu"), torch.float32)


def test_a_torch_without_a_grouped_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moe_file, "_grouped_mm", None)
    hidden, w1, w2, _, _ = problem(9, 5, 2, torch.bfloat16)
    assert moe_file._grouped_reason(hidden, w1, w2) == "this torch has no grouped GEMM"


def test_the_result_does_not_depend_on_the_company() -> None:
    """A token alone takes another way through the code than the same token among others."""
    hidden, w1, w2, weight, ids = problem(6, 5, 3, torch.float32)
    together = amd_ops.moe(hidden, w1, w2, weight, ids)
    for token in range(6):
        part = slice(token, token + 1)
        torch.testing.assert_close(amd_ops.moe(hidden[part], w1, w2, weight[part], ids[part]), together[part])


def test_gradients_flow_to_hidden_states_and_router() -> None:
    grads = []
    for function in (torch_moe, eager_moe):
        torch.manual_seed(2)
        hidden, w1, w2, weight, ids = problem(5, 4, 2, torch.float32)
        leaves = [x.requires_grad_() for x in (hidden, w1, w2, weight)]
        function(hidden, w1, w2, weight, ids, "silu").square().sum().backward()
        grads.append([x.grad for x in leaves])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renormalise", [True, False])
def test_the_router_is_stock_bit_for_bit(dtype: torch.dtype, renormalise: bool) -> None:
    logits = torch.randn(64, 8).to(dtype)
    logits[:, 1] = logits[:, 5]  # ties: they must fall as in stock
    weights = F.softmax(logits, dim=1, dtype=torch.float)
    weights, ids = torch.topk(weights, 2, dim=-1)
    if renormalise:
        weights /= weights.sum(dim=-1, keepdim=True)
    for tier in ("torch", "eager"):
        with amd_ops.override(tiers=tier):
            got = amd_ops.softmax_top_k(logits, 2, renormalise=renormalise, dtype=dtype)
        assert torch.equal(got[0], weights.to(dtype).float())
        assert torch.equal(got[1], ids.to(torch.int32))


GOOD = dict(zip(("hidden", "w1", "w2", "topk_weight", "topk_ids"), problem(4, 3, 2, torch.float32), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.randn(16)}, "hidden is .*2 dimensions"),
        ({"w1": torch.randn(3, 47, 16)}, "w1 is"),
        ({"w2": torch.randn(3, 16, 23)}, r"w2 is .*expected \[3, 16, 24\]"),
        ({"topk_ids": GOOD["topk_ids"][:3]}, "topk_ids is|topk_weight is"),
        ({"topk_ids": GOOD["topk_ids"] + 3}, "ids from 0 to 2"),
        ({"topk_weight": torch.rand(4, 3)}, "topk_weight is"),
        ({"activation": "relu"}, "activation is 'relu'"),
        ({"w1": GOOD["w1"].bfloat16()}, "w1 is .*hidden's dtype"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with amd_ops.override(tiers="torch"), pytest.raises(amd_ops.ArgumentError, match=message):
        amd_ops.moe(**{**GOOD, **change})


@pytest.mark.parametrize("wrong", [-1, 3])
def test_an_id_beside_the_experts_is_an_error_for_one_token_too(wrong: int) -> None:
    one = {name: value[:1] if name in ("hidden", "topk_weight") else value for name, value in GOOD.items()}
    with pytest.raises(amd_ops.ArgumentError, match="ids from 0 to 2"):
        amd_ops.moe(**{**one, "topk_ids": torch.tensor([[0, wrong]], dtype=torch.int32)})


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(0, 6), dtype=st.sampled_from(DTYPES), tier=st.sampled_from(("torch", "eager")))
def test_clamped_experts_agree_with_fp64(tokens: int, dtype: torch.dtype, tier: str) -> None:
    experts, size, width, limit = 4, 12, 10, 0.7
    hidden, ids = torch.randn(tokens, size).to(dtype), torch.randint(0, experts, (tokens, 2))
    gate_up, down = torch.randn(experts, size, 2 * width).to(dtype), torch.randn(experts, width, size).to(dtype)
    biases = torch.randn(experts, 2 * width).to(dtype), torch.randn(experts, size).to(dtype)
    weights = (torch.rand(tokens, 2) + 0.1).to(dtype)
    with amd_ops.override(tiers=tier):
        out = amd_ops.clamped_moe(hidden, gate_up, biases[0], down, biases[1], weights, ids, limit=limit)
    want = torch.zeros(tokens, size, dtype=torch.float64)
    for token in range(tokens):
        for slot in range(2):
            e = int(ids[token, slot])
            both = hidden[token].double() @ gate_up[e].double() + biases[0][e].double()
            gate, up = both[::2].clamp(max=limit), both[1::2].clamp(-limit, limit)
            middle = (up + 1) * gate / (1 + torch.exp(-1.702 * gate))
            want[token] += weights[token, slot].double() * (middle @ down[e].double() + biases[1][e].double())
    assert out.dtype is dtype
    close(out, want, 6.0)
