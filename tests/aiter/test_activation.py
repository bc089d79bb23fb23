"""Tier aiter of silu_and_mul, gelu_and_mul and gelu_tanh_and_mul."""

from __future__ import annotations

import pytest
import torch

import amd_ops
from tests.aiter.support import BF16, Gpu, rand
from tests.doubles import formulas

OPS = {"silu_and_mul": "silu", "gelu_and_mul": "gelu", "gelu_tanh_and_mul": "gelu_tanh"}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(3, 16), (2, 3, 16), (1, 2, 3, 16), (16,)])
def test_taken_with_one_launch(gpu: Gpu, op: str, shape: tuple[int, ...]) -> None:
    x = rand(*shape)
    out, (call,) = gpu.takes(op, x)
    assert call.name == op
    assert out.dtype == BF16
    formulas.close(out, formulas.gated(x, OPS[op]), 1.0)


@pytest.mark.parametrize("op", OPS)
def test_half_precision_float16(gpu: Gpu, op: str) -> None:
    x = rand(3, 16, dtype=torch.float16)
    out, _ = gpu.takes(op, x)
    formulas.close(out, formulas.gated(x, OPS[op]), 1.0)


@pytest.mark.parametrize("op", OPS)
def test_strided_inputs_are_right_and_never_reach_the_kernel(primary: Gpu, op: str) -> None:
    for x in (rand(3, 4, 16).transpose(0, 1), rand(3, 32)[:, 8:24], rand(3, 16, 2)[..., 0], rand(1, 16).expand(3, 16)):
        out, reason = primary.declines(op, x)
        assert "contiguous" in reason
        formulas.close(out, formulas.gated(x, OPS[op]), 3.0)


@pytest.mark.parametrize("op", OPS)
def test_odd_last_dimension_is_an_error(one: Gpu, op: str) -> None:
    with pytest.raises(amd_ops.ArgumentError, match=r"x is \[3, 17\]"):
        getattr(amd_ops, op)(rand(3, 17))
    assert one.double.calls == []


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(0, 16), (2, 0, 16), (3, 0)])
def test_empty_inputs_never_reach_the_kernel(one: Gpu, op: str, shape: tuple[int, ...]) -> None:
    out, _ = one.declines(op, rand(*shape), strict_error=False)
    assert out.shape == (*shape[:-1], shape[-1] // 2)
    assert one.double.kernels() == []


@pytest.mark.parametrize("op", OPS)
def test_float32_is_declined(primary: Gpu, op: str) -> None:
    x = rand(3, 16, dtype=torch.float32)
    out, reason = primary.declines(op, x)
    assert "float32" in reason
    formulas.close(out, formulas.gated(x, OPS[op]), 8.0)


@pytest.mark.parametrize("op", OPS)
def test_gradients_are_declined_and_flow(one: Gpu, op: str) -> None:
    x = rand(3, 16).requires_grad_()
    with torch.enable_grad():
        out, reason = one.declines(op, x)
        out.sum().backward()
    assert "grad" in reason
    assert x.grad is not None
    assert bool(x.grad.any())
    one.takes(op, x)  # the same tensor under no_grad
