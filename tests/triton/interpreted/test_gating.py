"""Gates by a sigmoid in one launch each, against stock's own operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amd_ops
from amd_ops.backends.triton import gating
from amd_ops.backends.triton.configs import FEW
from amd_ops.backends.triton.target import Target
from amd_ops.ops.gating import stock_gate, stock_shared

from .support import DTYPES, few, ran, steps_apart

TARGET = Target("cpu", "interpreter", 32, 1)


@few(20)
@given(
    batch=st.integers(1, 2),
    tokens=st.sampled_from((1, 3, 40)),
    heads=st.integers(1, 3),
    size=st.sampled_from((1, 24, 64)),
    cut=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_a_gate(batch: int, tokens: int, heads: int, size: int, cut: bool, dtype: torch.dtype) -> None:
    gate = torch.randn(batch, tokens, heads, 2 * size).to(dtype)[..., size:] * 4
    gate = gate if cut else gate.reshape(batch, tokens, -1)
    x = torch.randn(batch, tokens, heads * size).to(dtype)
    got, want = gating.launch_gate(x, gate, TARGET), stock_gate(x, gate)
    if dtype is torch.float32:
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    else:
        assert steps_apart(got, want) <= 1


@few(16)
@given(
    tokens=st.integers(1, 4),
    columns=st.sampled_from((8, 40, 1100)),
    size=st.sampled_from((16, 24, 2100)),
    dtype=st.sampled_from(DTYPES),
)
def test_a_shared_expert(tokens: int, columns: int, size: int, dtype: torch.dtype) -> None:
    experts, shared = torch.randn(2, tokens, columns).to(dtype)
    hidden, weight = torch.randn(tokens, size).to(dtype), (torch.randn(1, size) * size**-0.5).to(dtype)
    got, want = gating.launch_shared(experts, shared, hidden, weight, 32), stock_shared(experts, shared, hidden, weight)
    allowed = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(got, want, rtol=allowed, atol=allowed)


def test_what_it_does_not_take_is_declined_with_the_reason(asked: None) -> None:
    x, rows, weight = torch.randn(2, 8), torch.randn(3, 8), torch.randn(1, 8)
    wide = torch.randn(2, 16)
    cases: list[tuple[Any, str]] = [
        (lambda: amd_ops.sigmoid_gate(x, x.half()), "not of one dtype"),
        (lambda: amd_ops.sigmoid_gate(wide[:, ::2], x), "x is not dense"),
        (lambda: amd_ops.sigmoid_gate(x, wide[:, ::2]), "the gate has no dense rows"),
        (lambda: amd_ops.add_shared(rows, rows.half(), rows, weight), "not of one dtype"),
        (lambda: amd_ops.add_shared(rows, rows.T.contiguous().T, rows, weight), "the rows are not dense"),
    ]
    for call, reason in cases:
        with pytest.raises(amd_ops.DeclinedError, match=reason):
            call()


def test_gradients_many_tokens_and_nothing_at_all_are_left_to_torch(asked: None) -> None:
    with torch.enable_grad():
        amd_ops.sigmoid_gate(torch.randn(2, 8).requires_grad_(), torch.randn(2, 8)).sum().backward()
        amd_ops.add_shared(*torch.randn(3, 3, 8), torch.randn(1, 8).requires_grad_()).sum().backward()
    assert amd_ops.sigmoid_gate(torch.empty(0, 8), torch.empty(0, 8)).shape == (0, 8)
    amd_ops.add_shared(*torch.randn(3, FEW + 1, 8), torch.randn(1, 8))
    assert ran("sigmoid_gate") == ran("add_shared") == 0


@pytest.mark.parametrize("name", ["launch_gate", "launch_shared"])
def test_a_kernel_that_computes_wrongly_is_found_by_its_probe(
    monkeypatch: pytest.MonkeyPatch, asked: None, name: str
) -> None:
    right = getattr(gating, name)
    monkeypatch.setattr(gating, name, lambda *args, **words: right(*args, **words) * 1.1)
    calls = {
        "launch_gate": lambda: amd_ops.sigmoid_gate(*torch.randn(2, 2, 8)),
        "launch_shared": lambda: amd_ops.add_shared(*torch.randn(3, 3, 8), torch.randn(1, 8)),
    }
    with pytest.raises(amd_ops.DeclinedError, match="disagrees with the eager formula"):
        calls[name]()
