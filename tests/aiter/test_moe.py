"""Tier aiter of fused_moe: shuffled experts only, marked at each call, made anew when the weights change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import amd_ops
from amd_ops import toggles
from amd_ops.backends import aiter, shuffled
from amd_ops.dispatch import Candidate, Refusal
from tests.aiter.support import BF16, Gpu, rand
from tests.doubles import formulas


def experts(
    hidden: Tensor, w1: Tensor, w2: Tensor, share: Tensor, ids: Tensor, activation: str, dtype: torch.dtype = BF16
) -> Tensor:
    """The plain formula, token by token."""
    act = {"silu": F.silu, "gelu": F.gelu}[activation]
    out = torch.zeros(hidden.shape, dtype=share.dtype if dtype is BF16 else dtype)
    for token, (chosen, parts) in enumerate(zip(ids.tolist(), share.tolist(), strict=True)):
        for expert, part in zip(chosen, parts, strict=True):
            gate, up = (w1[expert].to(out.dtype) @ hidden[token].to(out.dtype)).chunk(2)
            out[token] += part * (w2[expert].to(out.dtype) @ (act(gate) * up))
    return out


def call(tokens: int = 5, count: int = 4, width: int = 32, inner: int = 64, k: int = 2) -> list[Any]:
    ids = torch.stack([torch.randperm(count)[:k] for _ in range(tokens)]).to(torch.int32)
    share = torch.rand(tokens, k).softmax(-1)
    return [rand(tokens, width), rand(count, 2 * inner, width) / 6, rand(count, width, inner) / 8, share, ids, "silu"]


@pytest.fixture
def moe(gpu: Gpu) -> Iterator[Candidate]:
    with amd_ops.override(use_preshuffle=1):
        offer = aiter.offer("moe", "USE_OPTIMIZED_OPS", experts)(toggles.settings())
        assert isinstance(offer, Candidate), offer
        yield offer
    shuffled.drop_all()


def ask(candidate: Candidate, args: list[Any]) -> str:
    """What the chain asks before it runs, with shuffled copies of the experts kept (as prepare() does)."""
    if args[1].dtype is BF16:
        assert [shuffled.keep(weight, aiter.shuffler()) for weight in args[1:3]] == ["", ""]
    assert candidate.check is not None
    assert candidate.probe is not None
    return candidate.check(*args) or candidate.probe(*args)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_it_agrees_with_the_formula(gpu: Gpu, moe: Candidate, activation: str, tokens: int) -> None:
    args = [*call(tokens)[:5], activation]
    assert ask(moe, args) == ""
    formulas.close(moe.run(*args), experts(*args, dtype=torch.float64), 4.0)
    assert gpu.double.kernels().count("fused_moe") == 2  # the probe's and this one


def test_without_copies_it_declines(moe: Candidate) -> None:
    assert moe.check is not None
    assert "prepare(model)" in moe.check(*call())


def test_without_the_toggle_it_declines(gpu: Gpu) -> None:
    offer = aiter.offer("moe", "USE_OPTIMIZED_OPS", experts)(toggles.settings())
    assert isinstance(offer, Candidate)
    assert offer.check is not None
    assert "USE_PRESHUFFLE=1" in offer.check(*call())
    with amd_ops.override(use_optimized_ops=0):
        assert isinstance(aiter.offer("moe", "USE_OPTIMIZED_OPS", experts)(toggles.settings()), Refusal)


def test_a_mark_is_what_the_kernel_needs(gpu: Gpu, moe: Candidate) -> None:
    """A detached copy has lost its mark: that is why it is set at each call."""
    args = call()
    assert ask(moe, args) == ""
    moe.run(*args)
    held = shuffled.find(args[1])
    assert held is not None
    assert not hasattr(held.tagged().detach(), "is_shuffled")


WRONG: list[tuple[int, Any, str]] = [
    (0, lambda: rand(5, 32, dtype=torch.float32), "neither fp16 nor bf16"),
    (0, lambda: rand(5, 64), "do not fit"),
    (1, lambda: rand(4, 64, 32), "do not fit"),
    (3, lambda: torch.rand(5, 2, dtype=torch.float64), "not fp32"),
    (4, lambda: torch.zeros(5, 2, dtype=torch.int16), "not int32"),
    (4, lambda: torch.zeros(6, 2, dtype=torch.int32), r"not \[T, k\]"),
    (5, lambda: "relu", "neither silu nor gelu"),
]


@pytest.mark.parametrize(("index", "value", "reason"), WRONG)
def test_it_declines_what_the_kernel_would_misread(moe: Candidate, index: int, value: Any, reason: str) -> None:
    args = call()
    args[index] = value()
    assert moe.check is not None
    found = moe.check(*args)
    assert re.search(reason, found), found


def test_odd_widths_and_gradients_decline(moe: Candidate) -> None:
    assert moe.check is not None
    assert "multiple" in shuffled.why_not(call(width=48, inner=40)[1])
    args = call()
    with torch.enable_grad():
        args[1].requires_grad_()
        assert "gradient" in moe.check(*args)
