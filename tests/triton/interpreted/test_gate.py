"""The gated activations against fp64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amd_ops
from amd_ops.backends.triton.configs import Config
from amd_ops.backends.triton.gate import KINDS, launch_gate, launch_gate_backward
from amd_ops.ops.activation import eager_gelu_and_mul, eager_gelu_tanh_and_mul, eager_silu_and_mul
from tests.ops.reference import close, gated

from .support import CUTS, DTYPES, LAYOUTS, few, laid_out, ran, steps_apart

EAGER = {"silu": eager_silu_and_mul, "gelu": eager_gelu_and_mul, "gelu_tanh": eager_gelu_tanh_and_mul}


@few(40)
@given(
    lead=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    half=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(sorted(EAGER)),
    layout=st.sampled_from(LAYOUTS),
    cut=st.sampled_from(CUTS),
    size=st.sampled_from((0.1, 1.0, 8.0)),
)
def test_every_shape_and_layout_agrees_with_fp64(
    lead: list[int], half: int, dtype: torch.dtype, kind: str, layout: str, cut: Config, size: float
) -> None:
    x = laid_out((*lead, 2 * half), dtype, layout) * size
    close(launch_gate(x, kind, cut), gated(x, kind), 2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", sorted(EAGER))
def test_results_round_twice_as_eager_does(kind: str, dtype: torch.dtype) -> None:
    x = (torch.randn(16, 128) * 3).to(dtype)
    first, second = x.double().chunk(2, -1)
    activated = gated(torch.cat((first, torch.ones_like(first)), -1), kind)
    want = (activated.to(dtype).double() * second).to(dtype)  # exact but for the two roundings that eager makes, too
    got = launch_gate(x, kind, CUTS[0])
    near = activated.abs() > 1e-3  # below, 1 + erf(x) cancels in fp32, in torch as here
    assert steps_apart(got[near], want[near]) <= 1
    assert int((got != want)[near].sum()) <= got.numel() // 100
    torch.testing.assert_close(got, want, rtol=1e-2, atol=2e-5)


@pytest.mark.parametrize("kind", sorted(EAGER))
def test_extreme_numbers_are_those_of_eager(kind: str) -> None:
    gate = torch.tensor([0.0, -0.0, 80.0, -80.0, 1e4, -1e4, 3e38, -3e38, float("inf"), float("nan")])
    x = torch.cat((gate, torch.ones_like(gate))).unsqueeze(0)
    torch.testing.assert_close(launch_gate(x, kind, CUTS[0]), EAGER[kind](x), equal_nan=True, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", sorted(KINDS))
@pytest.mark.parametrize("shape", [(2,), (1, 2), (1, 14), (3, 514), (1, 2, 8192), (0, 8), (2, 0, 8)])
def test_edge_shapes_through_the_public_op(asked: None, op: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    close(getattr(amd_ops, op)(x), gated(x, KINDS[op]), 2.0)
    assert ran(op) == (1 if x.numel() else 0)


@few(20)
@given(
    rows=st.integers(1, 5),
    half=st.integers(1, 40),
    kind=st.sampled_from(sorted(EAGER)),
    layout=st.sampled_from(LAYOUTS),
    cut=st.sampled_from(CUTS),
)
def test_the_backward_agrees_with_fp64(rows: int, half: int, kind: str, layout: str, cut: Config) -> None:
    x, dy = laid_out((rows, 2 * half), torch.float32, layout), laid_out((rows, half), torch.float32, layout)
    x64 = x.double().requires_grad_()
    gated(x64, kind).backward(dy.double())
    assert x64.grad is not None
    close(launch_gate_backward(x, dy, kind, cut), x64.grad, 20.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", sorted(KINDS))
def test_training_through_the_public_ops(asked: None, op: str, dtype: torch.dtype) -> None:
    grads = []
    for tiers in ("triton", "eager"):
        torch.manual_seed(1)
        x = torch.randn(3, 4, 48).to(dtype).requires_grad_()
        with amd_ops.override(tiers=tiers), torch.enable_grad():
            getattr(amd_ops, op)(x).float().square().sum().backward()
        grads.append(x.grad)
    assert ran(op) == 1
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    assert (grads[0].float() - grads[1].float()).norm() <= tolerance * grads[1].float().norm()
