"""Gates by a sigmoid: stock's numbers bit for bit, and what is left to stock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amd_ops
from amd_ops.forward import gating

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gate_cut_from_a_projection_bit_for_bit(dtype: torch.dtype) -> None:
    both = torch.randn(2, 3, 4, 16).to(dtype)
    _, gate = both.chunk(2, dim=-1)
    x = torch.randn(2, 3, 32).to(dtype)
    assert torch.equal(amd_ops.sigmoid_gate(x, gate), x * torch.sigmoid(gate.reshape(2, 3, -1)))


def test_gradients_of_a_gate_are_those_of_stock() -> None:
    found = []
    for run in (amd_ops.sigmoid_gate, lambda x, gate: x * torch.sigmoid(gate.reshape(x.shape))):
        x, gate = torch.linspace(-2, 2, 8).view(1, 8).requires_grad_(), torch.ones(1, 2, 4).requires_grad_()
        run(x, gate).square().sum().backward()
        found.append((x.grad, gate.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_compiled_gate_is_the_formula() -> None:
    x, gate = torch.randn(2, 8), torch.randn(2, 2, 4)
    compiled = torch.compile(amd_ops.sigmoid_gate, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, gate), amd_ops.sigmoid_gate(x, gate))


def block(dtype: torch.dtype) -> tuple[Tensor, Tensor, nn.Linear, Tensor]:
    gate = nn.Linear(8, 1, bias=False).to(dtype)
    return torch.randn(5, 6).to(dtype), torch.randn(5, 6).to(dtype), gate, torch.randn(5, 8).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shared_expert_bit_for_bit(dtype: torch.dtype) -> None:
    experts, shared, gate, hidden = block(dtype)
    got = amd_ops.shared_expert(experts, shared, gate, hidden)
    assert got is not None
    assert torch.equal(got, experts + F.sigmoid(gate(hidden)) * shared)


def test_gradients_of_a_shared_expert_are_those_of_stock() -> None:
    experts, shared, gate, hidden = block(torch.float32)
    found = []
    for ours in (True, False):
        given = [one.clone().requires_grad_() for one in (experts, shared, hidden)]
        gate.weight.grad = None
        out = (
            amd_ops.shared_expert(given[0], given[1], gate, given[2])
            if ours
            else given[0] + F.sigmoid(gate(given[2])) * given[1]
        )
        assert out is not None
        out.square().sum().backward()
        found.append([*(one.grad for one in given), gate.weight.grad])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_a_gate_that_is_more_than_a_plain_linear_is_left_to_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, shared, gate, hidden = block(torch.float32)
    amd_ops.reset_counters()
    handle = gate.register_forward_hook(lambda *args: None)
    assert amd_ops.shared_expert(experts, shared, gate, hidden) is None
    handle.remove()
    for other in (nn.Linear(8, 1), nn.Linear(8, 6, bias=False), nn.Sequential(gate)):
        assert amd_ops.shared_expert(experts, shared, other, hidden) is None
    assert amd_ops.shared_expert(experts[None], shared[None], gate, hidden[None]) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert amd_ops.shared_expert(experts, shared, gate, hidden) is None
    text = str(amd_ops.report())
    for reason in ("a hook is registered", "2x the shared expert's gate has", "not exactly nn.Linear", "autocast"):
        assert reason in text
    monkeypatch.setattr(gating, "_compiling", lambda: True)
    assert amd_ops.shared_expert(experts, shared, gate, hidden) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: amd_ops.sigmoid_gate(torch.ones(2, 4), torch.ones(3)), "gate is .*8 numbers"),
        (lambda: amd_ops.add_shared(*[torch.ones(2, 4)] * 3, torch.ones(4)), "weight is .*2 dimensions"),
        (lambda: amd_ops.add_shared(*[torch.ones(2, 4)] * 3, torch.ones(2, 3)), r"weight is .*\[1, 4\]"),
        (lambda: amd_ops.add_shared(*torch.ones(2, 2, 4), torch.ones(3, 4), torch.ones(1, 4)), "shared and hidden"),
    ],
)
def test_the_argument_that_is_unusable_is_named(call: Any, message: str) -> None:
    with pytest.raises(amd_ops.ArgumentError, match=message):
        call()
