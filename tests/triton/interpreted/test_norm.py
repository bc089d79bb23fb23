"""The norm kernels against fp64 and against the stock order of roundings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amd_ops
from amd_ops.backends.triton.configs import Config
from amd_ops.backends.triton.layout import rows_of
from amd_ops.backends.triton.norm import FORMS, launch_norm, launch_norm_backward, result_type
from amd_ops.ops.norm import eager_add_rms_norm, eager_rms_norm
from tests.ops.reference import close, rms_norm

from .support import CUTS, DTYPES, LAYOUTS, few, laid_out, ran, steps_apart


@few(50)
@given(
    lead=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    size=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(FORMS),
    layout=st.sampled_from(LAYOUTS),
    other_layout=st.sampled_from(LAYOUTS),
    cut=st.sampled_from(CUTS),
    eps=st.sampled_from((0.0, 1e-6, 1e-2)),
)
def test_every_shape_and_layout_agrees_with_fp64(
    lead: list[int], size: int, dtype: torch.dtype, form: str, layout: str, other_layout: str, cut: Config, eps: float
) -> None:
    x, residual = laid_out((*lead, size), dtype, layout), laid_out((*lead, size), dtype, other_layout)
    weight = torch.randn(size).to(dtype)
    out, same = launch_norm(x, None, weight, eps, form, cut)
    close(out, rms_norm(x, weight, eps, form), 2.0)
    assert out.is_contiguous()
    assert torch.equal(same, x)
    out, total = launch_norm(x, residual, weight, eps, form, cut)
    assert torch.equal(total, residual + x)
    close(out, rms_norm(total, weight, eps, form), 2.0)


def test_strides_that_three_dimensions_cannot_tell_are_copied() -> None:
    x = torch.randn(2, 2, 2, 2, 8).permute(3, 1, 0, 2, 4)[:, :, :, :1].expand(2, 2, 2, 2, 8)
    assert rows_of(x) is None
    close(launch_norm(x, x, torch.ones(8), 1e-6, "llama", CUTS[1])[0], rms_norm(x + x, torch.ones(8), 1e-6, "llama"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_results_round_where_the_stock_form_rounds(form: str, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(9, 96).to(dtype), torch.randn(9, 96).to(dtype), torch.randn(96).to(weight_dtype)
    out, total = launch_norm(x, residual, weight, 1e-6, form, CUTS[2])
    want, want_total = eager_add_rms_norm(x, residual, weight, 1e-6, form)
    assert out.dtype is want.dtype is result_type(form, dtype, weight_dtype)
    assert torch.equal(total, want_total)
    if out.dtype is torch.float32:
        rounding = 2e-6 if dtype is torch.float32 or form not in ("llama",) else 2.0**-7
        torch.testing.assert_close(out, want, rtol=rounding, atol=1e-6)
    else:
        assert steps_apart(out, want) <= 1  # another order of the sum may fall on the other side of a tie
        assert int((out != want).sum()) <= out.numel() // 100


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 257), (2, 1000), (1, 4096), (0, 8), (2, 0, 8)])
def test_edge_shapes_through_the_public_op(asked: None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    close(amd_ops.rms_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6, "llama"), 2.0)
    out, total = amd_ops.add_rms_norm(x, x, weight, 1e-6, form="gemma")
    assert torch.equal(total, x + x)
    close(out, rms_norm(total, weight, 1e-6, "gemma"), 2.0)
    assert ran("rms_norm") == ran("add_rms_norm") == (1 if x.numel() else 0)


def test_rows_longer_than_a_block_are_walked(asked: None) -> None:
    x, weight = torch.randn(2, 16385).bfloat16(), torch.randn(16385).bfloat16()
    close(amd_ops.rms_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6, "llama"), 2.0)
    assert ran("rms_norm") == 1
    x.requires_grad_()
    with amd_ops.override(strict=0), torch.enable_grad(), pytest.warns(amd_ops.DeclinedWarning, match="up to 16384"):
        amd_ops.rms_norm(x, weight, 1e-6).sum().backward()
    assert x.grad is not None


def test_extreme_numbers_are_those_of_eager() -> None:
    x = torch.tensor([[0.0, 0.0], [1e-30, -1e-30], [3e38, 3e38], [float("inf"), 1.0], [float("nan"), 1.0]])
    for dtype in (torch.float32, torch.bfloat16):
        ones = torch.ones(2, dtype=dtype)
        out, _ = launch_norm(x.to(dtype), None, ones, 1e-6, "llama", CUTS[0])
        torch.testing.assert_close(out, eager_rms_norm(x.to(dtype), ones, 1e-6, "llama"), equal_nan=True)


@few(25)
@given(
    rows=st.integers(1, 9),
    size=st.integers(1, 16),
    form=st.sampled_from(FORMS),
    layout=st.sampled_from(LAYOUTS),
    programs=st.integers(1, 5),
    cut=st.sampled_from(CUTS),
    add=st.booleans(),
)
def test_the_backward_is_that_of_eager_in_fp64(
    rows: int, size: int, form: str, layout: str, programs: int, cut: Config, add: bool
) -> None:
    x, weight, dy, dtotal = (laid_out((rows, size), torch.float32, layout), torch.randn(size),
                             laid_out((rows, size), torch.float32, layout), torch.randn(rows, size))  # fmt: skip
    x64, w64 = x.double().requires_grad_(), weight.double().requires_grad_()
    out = rms_norm_graph(x64, w64, 1e-6, form)
    torch.autograd.backward(
        [out, x64 * 1.0] if add else [out], [dy.double(), dtotal.double()] if add else [dy.double()]
    )
    dx, dw = launch_norm_backward(x, weight, dy, dtotal if add else None, 1e-6, form, cut, programs)
    assert x64.grad is not None
    assert w64.grad is not None
    # The two terms of dx cancel in short rows: an error counts against the terms, not against their difference.
    term = float((dy.abs().max() * (1 + weight.abs().max()) / (x.square().mean(-1) + 1e-6).sqrt()).max())
    torch.testing.assert_close(dx.double(), x64.grad, rtol=1e-4, atol=3e-6 * max(term, 1.0))
    close(dw, w64.grad, 20.0)


def rms_norm_graph(x: torch.Tensor, weight: torch.Tensor, eps: float, form: str) -> torch.Tensor:
    """The fp64 formula, differentiable."""
    normed = x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)
    return normed * (1.0 + weight if form == "gemma" else weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_training_through_the_public_ops(asked: None, form: str, dtype: torch.dtype) -> None:
    grads = []
    for tiers in ("triton", "eager"):
        torch.manual_seed(1)
        x, residual, weight = (torch.randn(s).to(dtype).requires_grad_() for s in ((4, 32), (4, 32), (32,)))
        with amd_ops.override(tiers=tiers), torch.enable_grad():
            y = amd_ops.rms_norm(x, weight, 1e-6, form=form)
            z, total = amd_ops.add_rms_norm(y.to(dtype), residual, weight, 1e-6, form=form)
            (z.float().square().sum() + total.float().sum()).backward()
        grads.append((x.grad, residual.grad, weight.grad))
    assert ran("rms_norm") == ran("add_rms_norm") == 1
    for got, want in zip(*grads, strict=True):
        assert got is not None
        assert want is not None
        tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
        assert (got.float() - want.float()).norm() <= tolerance * want.float().norm()


def test_a_weight_that_is_frozen_or_an_input_that_is(asked: None) -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(8)
    with torch.enable_grad():
        amd_ops.rms_norm(x, weight, 1e-6).sum().backward()
        assert x.grad is not None
        amd_ops.rms_norm(x.detach(), weight.requires_grad_(), 1e-6).sum().backward()
    assert weight.grad is not None
    assert ran("rms_norm") == 2
