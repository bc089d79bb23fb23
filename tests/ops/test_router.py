"""The routers' torch tier is stock's own arithmetic, bit for bit; what is wrong with a call is said by name."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import amd_ops
from amd_ops.forward import router

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NOTHING = -float("inf")


def reasons() -> dict[str, int]:
    for row in amd_ops.report().as_dict()["ops"]:
        if row["op"] == "router":
            return {d["reason"]: d["calls"] for d in row["tiers"][0]["declined"]}
    return {}


def tied(tokens: int, count: int, dtype: torch.dtype) -> Tensor:
    logits = torch.randn(tokens, count).to(dtype)
    logits[:, 1] = logits[:, 3]  # ties fall as in stock, since stock's own operations choose
    return logits


def stock(model: str, name: str, dtype: torch.dtype, **config: Any) -> Any:
    module = pytest.importorskip(f"transformers.models.{model}.modeling_{model}")
    if not hasattr(module, name):
        pytest.skip(f"this transformers has no {name}")
    made = getattr(module, name)(types.SimpleNamespace(hidden_size=16, num_experts_per_tok=3, **config))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made.to(dtype)


@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpt_oss_bit_for_bit(dtype: torch.dtype, tokens: int) -> None:
    made = stock("gpt_oss", "GptOssTopKRouter", dtype, num_local_experts=7)
    hidden = torch.randn(tokens, 16).to(dtype)
    *_, scores, ids = made(hidden)
    got = amd_ops.top_k_router(F.linear(hidden, made.weight, made.bias), 3, scores.shape[1] == 7)
    assert got is not None
    assert torch.equal(got[0], scores)
    assert torch.equal(got[1], ids)
    assert (got[0].dtype, got[1].dtype) == (scores.dtype, ids.dtype)


@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_deepseek_v3_bit_for_bit(dtype: torch.dtype, tokens: int) -> None:
    sizes = {"n_group": 3, "topk_group": 2, "norm_topk_prob": True, "n_routed_experts": 15, "num_local_experts": 15}
    made = stock("deepseek_v3", "DeepseekV3TopkRouter", dtype, routed_scaling_factor=2.5, **sizes)
    made.e_score_correction_bias.copy_(torch.randn(15) * 0.2)
    hidden = torch.randn(tokens, 16).to(dtype)
    choose = getattr(made, "get_topk_indices", None)
    rest = (3, 3, 2, True, 2.5, NOTHING if choose is None else 0.0, choose)
    got = amd_ops.grouped_router(hidden, made.weight, made.e_score_correction_bias, *rest)
    assert got is not None
    first, second, *more = made(hidden)
    weights, ids = (second, more[0]) if more else (second, first)
    assert torch.equal(got[1], weights)
    assert torch.equal(got[2], ids)


@pytest.mark.parametrize(("model", "name"), [("mixtral", "Mixtral"), ("qwen3_moe", "Qwen3Moe")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_routers_bit_for_bit(model: str, name: str, dtype: torch.dtype) -> None:
    sizes = {"num_local_experts": 11, "num_experts": 11, "norm_topk_prob": True}
    made = stock(model, f"{name}TopKRouter", dtype, **sizes)
    logits, weights, ids = made(torch.randn(9, 16).to(dtype))
    got = amd_ops.softmax_router(logits, 3, True, weights.dtype)
    assert got is not None
    assert torch.equal(got[0], weights)
    assert torch.equal(got[1], ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_in_another_dtype_are_rounded_from_stocks(dtype: torch.dtype) -> None:
    logits = torch.randn(7, 12)
    got = amd_ops.top_k_router(logits, 3, False, dtype)
    value, ids = logits.topk(3, dim=-1)
    assert got is not None
    assert torch.equal(got[0], torch.softmax(value, dim=-1).to(dtype))
    assert torch.equal(got[1], ids)


@pytest.mark.parametrize("spread", [False, True])
def test_ties_and_nan_fall_as_in_stock(spread: bool) -> None:
    logits = tied(4, 6, torch.float32)
    logits[2, 2] = float("nan")
    weights, ids = amd_ops.top_k_softmax(logits, 2, spread=spread)
    value, chosen = torch.topk(logits, 2, dim=-1)
    value = F.softmax(value, dim=1, dtype=value.dtype)
    want = torch.zeros_like(logits).scatter_(1, chosen, value) if spread else value
    assert torch.equal(ids, chosen)
    torch.testing.assert_close(weights, want, rtol=0, atol=0, equal_nan=True)


def test_gradients_are_those_of_stock() -> None:
    logits = torch.randn(5, 12)
    grads = []
    for run in (
        lambda x: amd_ops.grouped_top_k(x, torch.zeros(12), 3, groups=3, kept=2, scale=2.5)[0],
        lambda x: x.sigmoid().gather(1, amd_ops.grouped_top_k(x, torch.zeros(12), 3, groups=3, kept=2)[1]),
    ):
        x = logits.clone().requires_grad_()
        found = run(x)
        if not grads:
            found.square().sum().backward()
        else:
            (found / (found.sum(-1, keepdim=True) + 1e-20) * 2.5).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: amd_ops.top_k_softmax(torch.zeros(3), 1), "logits is"),
        (lambda: amd_ops.top_k_softmax(torch.zeros(2, 3), 4), "top_k is 4.*1 to 3"),
        (lambda: amd_ops.grouped_top_k(torch.zeros(2, 6), torch.zeros(5), 1), "bias is .*one per expert"),
        (lambda: amd_ops.grouped_top_k(torch.zeros(2, 6), torch.zeros(6), 1, groups=4), "groups and kept"),
        (lambda: amd_ops.router_logits(torch.zeros(2, 6), torch.zeros(3, 5)), r"weight is .*\[E, 6\]"),
        (lambda: amd_ops.join_rope(*torch.zeros(4, 1, 1, 2, 2), *torch.zeros(2, 1, 3, 2)), "cos and sin"),
        (lambda: amd_ops.sink_attention(*torch.zeros(3, 1, 2, 1, 4), torch.zeros(3)), "sinks is .*one per head"),
    ],
)
def test_the_argument_that_is_unusable_is_named(call: Any, message: str) -> None:
    with pytest.raises(amd_ops.ArgumentError, match=message):
        call()


def test_rows_of_three_dimensions_and_a_replaced_method_are_stocks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert amd_ops.softmax_router(torch.zeros(1, 2, 3), 1, True, torch.float32) is None
    assert amd_ops.grouped_router(*torch.zeros(2, 1, 2), torch.zeros(1), 1, 1, 1, True, 1.0, 0.0, lambda x: x) is None
    assert reasons() == {
        "the rows are not [T, H] or [T, E]": 1,
        "the method that chooses the experts has been replaced": 1,
    }
    monkeypatch.setattr(router, "_compiling", lambda: True)
    assert amd_ops.top_k_router(torch.zeros(1, 3), 1, False) is None, "a compiler fuses stock's statements"


def test_a_method_that_was_wrapped_again_is_not_the_files() -> None:
    import functools

    made = stock(
        "deepseek_v3", "DeepseekV3TopkRouter", torch.float32, n_group=2, topk_group=1, norm_topk_prob=True,
        n_routed_experts=4, num_local_experts=4, routed_scaling_factor=1.0,
    )  # fmt: skip
    if not hasattr(made, "get_topk_indices"):
        pytest.skip("this transformers chooses in forward")
    inner = type(made).get_topk_indices
    assert not router._replaced(made.get_topk_indices)

    @functools.wraps(inner)
    def mine(self: Any, scores: Tensor) -> Tensor:
        found: Tensor = inner(self, scores).flip(-1) * 0
        return found

    assert router._replaced(types.MethodType(mine, made))
