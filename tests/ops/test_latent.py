"""The key of a latent cache: stock's writes in one launch, or the reason why stock makes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import amd_ops


def stock(k_pass: Tensor, k_rot: Tensor, width: int) -> Tensor:
    key = k_pass.new_empty(*k_pass.shape[:-1], k_pass.shape[-1] + width)
    key[..., : k_pass.shape[-1]].copy_(k_pass)
    key[..., k_pass.shape[-1] :].copy_(k_rot.expand(-1, k_pass.shape[1], -1, -1))
    return key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_key_is_stocks_in_bits_and_layout(dtype: torch.dtype) -> None:
    both = torch.randn(2, 5, 3, 12).to(dtype).transpose(1, 2)
    k_pass, k_rot = both[..., :8], torch.randn(2, 1, 5, 4).to(dtype)
    got, want = amd_ops.latent_key(k_pass, k_rot, 4), stock(k_pass, k_rot, 4)
    assert got is not None
    assert torch.equal(got, want)
    assert got.stride() == want.stride()


def test_gradients_are_those_of_stock() -> None:
    found = []
    for run in (amd_ops.latent_key, stock):
        k_pass = torch.linspace(-1, 1, 48).view(1, 3, 2, 8).requires_grad_()
        k_rot = torch.linspace(-2, 2, 8).view(1, 1, 2, 4).requires_grad_()
        key = run(k_pass, k_rot, 4)
        assert key is not None
        key.square().sum().backward()
        found.append((k_pass.grad, k_rot.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("k_rot", "reason"),
    [
        (torch.ones(1, 1, 2, 1), "another width"),  # stock's write would repeat it
        (torch.ones(1, 3, 2, 4), "not one for all heads"),
        (torch.ones(1, 1, 2, 4).double(), "differ in dtype or device"),
    ],
)
def test_what_stock_would_cast_or_repeat_is_left_to_stock(k_rot: Tensor, reason: str) -> None:
    amd_ops.reset_counters()
    assert amd_ops.latent_key(torch.ones(1, 3, 2, 8), k_rot, 4) is None
    assert reason in str(amd_ops.report())
