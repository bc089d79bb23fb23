"""Gated activations on every CPU tier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import amd_ops

from .reference import close, gated
from .test_norm import DTYPES, SHAPES, laid_out

OPS = {"silu": amd_ops.silu_and_mul, "gelu": amd_ops.gelu_and_mul, "gelu_tanh": amd_ops.gelu_tanh_and_mul}


@settings(max_examples=60, deadline=None)
@given(
    lead=SHAPES,
    half=st.integers(0, 20),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(sorted(OPS)),
    layout=st.sampled_from(("dense", "transposed", "sliced")),
    tier=st.sampled_from(("torch", "eager")),
)
def test_every_tier_agrees_with_fp64(
    lead: list[int], half: int, dtype: torch.dtype, kind: str, layout: str, tier: str
) -> None:
    x = laid_out((*lead, 2 * half), dtype, layout)
    with amd_ops.override(tiers=tier):
        out = OPS[kind](x)
    assert out.dtype is dtype
    close(out, gated(x, kind), 2.0)


@pytest.mark.parametrize("kind", sorted(OPS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_tier_is_the_stock_expression(kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(5, 32).to(dtype)
    gate, up = x.chunk(2, -1)
    act = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda g: F.gelu(g, approximate="tanh")}[kind]
    assert torch.equal(OPS[kind](x), act(gate) * up)


@pytest.mark.parametrize("kind", sorted(OPS))
def test_gradients_flow(kind: str) -> None:
    x = torch.randn(3, 8, dtype=torch.float64).float().requires_grad_()
    OPS[kind](x).sum().backward()
    y = x.detach().double().requires_grad_()
    gated(y, kind).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(OPS))
@pytest.mark.parametrize("bad", [torch.randn(2, 3), torch.randn(2, 1), torch.zeros(2, 4, dtype=torch.long)])
@pytest.mark.parametrize("tier", ["torch", "eager"])
def test_bad_arguments_are_named(kind: str, bad: torch.Tensor, tier: str) -> None:
    """A last dimension of 3 would broadcast to a wrong answer if the halves were only multiplied."""
    with (
        amd_ops.override(tiers=tier),
        pytest.raises(amd_ops.ArgumentError, match=r"x is \[2, .*expected a float tensor"),
    ):
        OPS[kind](bad)
