"""RMS norm: four forms, every CPU tier against fp64 and against the stock order of roundings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import amd_ops
from amd_ops.ops.norm import FORMS, eager_rms_norm, torch_rms_norm

from .reference import close, rms_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=3)


def laid_out(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> torch.Tensor:
    """A tensor of ``shape``: dense, a transposed view, or rows cut from a wider matrix."""
    if layout == "transposed" and len(shape) > 1:
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).to(dtype).transpose(-1, -2)
    if layout == "sliced":
        return torch.randn(*shape[:-1], shape[-1] + 3).to(dtype)[..., 2:-1]
    return torch.randn(shape).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    lead=SHAPES,
    size=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(FORMS),
    layout=st.sampled_from(("dense", "transposed", "sliced")),
    tier=st.sampled_from(("torch", "eager")),
    eps=st.sampled_from((0.0, 1e-6, 1e-2)),
)
def test_every_tier_agrees_with_fp64(
    lead: list[int], size: int, dtype: torch.dtype, form: str, layout: str, tier: str, eps: float
) -> None:
    x, weight = laid_out((*lead, size), dtype, layout), torch.randn(size).to(dtype)
    with amd_ops.override(tiers=tier):
        out = amd_ops.rms_norm(x, weight, eps, form=form)
        both, total = amd_ops.add_rms_norm(x, x.flip(-1), weight, eps, form=form)
    assert out.dtype is dtype
    close(out, rms_norm(x, weight, eps, form), 2.0)
    assert torch.equal(total, x.flip(-1) + x)
    close(both, rms_norm(total, weight, eps, form), 2.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_torch_tier_rounds_as_the_stock_form(form: str, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    x, weight = torch.randn(7, 5, 96).to(dtype), torch.randn(96).to(weight_dtype)
    stock, ours = eager_rms_norm(x, weight, 1e-6, form), torch_rms_norm(x, weight, 1e-6, form)
    assert ours.dtype is stock.dtype
    assert torch.equal(ours, stock)
    with torch.inference_mode():
        assert torch.equal(torch_rms_norm(x, weight, 1e-6, form), stock)


def test_the_forms_are_not_one_formula() -> None:
    x, weight = torch.randn(64, 96).bfloat16(), torch.randn(96).bfloat16()
    outs = {form: amd_ops.rms_norm(x, weight, 1e-6, form=form) for form in FORMS}
    assert not torch.equal(outs["llama"], outs["fp32_weight"]), "the rounding before the weight must show in bf16"
    assert not torch.allclose(outs["llama"].float(), outs["gemma"].float(), atol=0.1)


@pytest.mark.parametrize("form", FORMS)
def test_stock_modules_agree_bit_for_bit(form: str) -> None:
    model, name = {
        "llama": ("llama", "LlamaRMSNorm"),
        "gemma": ("gemma", "GemmaRMSNorm"),
        "fp32_weight": ("gpt_oss", "GptOssRMSNorm"),
        "t5": ("t5", "T5LayerNorm"),
    }[form]
    stock = getattr(pytest.importorskip(f"transformers.models.{model}.modeling_{model}"), name)(48)
    torch.nn.init.normal_(stock.weight)
    for dtype in DTYPES:
        module = stock.to(dtype)
        x = torch.randn(3, 4, 48).to(dtype)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        with torch.no_grad():
            assert torch.equal(amd_ops.rms_norm(x, module.weight, eps, form=form), module(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_flow_and_agree(form: str, dtype: torch.dtype) -> None:
    grads = []
    for function in (eager_rms_norm, torch_rms_norm):
        torch.manual_seed(1)
        x, weight = (torch.randn(shape).to(dtype).requires_grad_() for shape in ((4, 32), (32,)))
        function(x, weight, 1e-6, form).float().square().sum().backward()
        grads.append((x.grad, weight.grad))
    for got, want in zip(grads[1], grads[0], strict=True):
        assert got is not None
        tolerance = 1e-4 if dtype is torch.float32 else 5e-2
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_add_rms_norm_writes_to_neither_input() -> None:
    x, residual = torch.randn(3, 8), torch.randn(3, 8)
    kept = x.clone(), residual.clone()
    amd_ops.add_rms_norm(x, residual, torch.ones(8), 1e-6)
    assert torch.equal(x, kept[0])
    assert torch.equal(residual, kept[1])


def test_autocast_does_not_change_the_result_dtype() -> None:
    x, weight = torch.randn(3, 8).bfloat16(), torch.randn(8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert amd_ops.rms_norm(x, weight, 1e-6).dtype is torch.bfloat16


X = torch.randn(2, 8)


@pytest.mark.parametrize(
    ("args", "form", "message"),
    [
        ((X, torch.ones(7), 1e-6), "llama", r"weight is \[7\].*expected \[8\]"),
        ((X, torch.ones(8, 1), 1e-6), "llama", r"weight is \[8, 1\]"),
        ((X, torch.ones(1), 1e-6), "gemma", r"weight is \[1\]"),
        ((X, torch.ones(8), -1e-6), "llama", "eps is -1e-06, expected a number that is not negative"),
        ((X, torch.ones(8), float("nan")), "t5", "eps is nan"),
        ((X, torch.ones(8), 1e-6), "rms", "form is 'rms', expected one of llama"),
        ((X.long(), torch.ones(8), 1e-6), "llama", "x is .*int64"),
        ((X, torch.ones(8, device="meta"), 1e-6), "llama", "weight is on meta, expected cpu"),
    ],
)
@pytest.mark.parametrize("tier", ["torch", "eager"])
def test_bad_arguments_are_named(args: tuple, form: str, message: str, tier: str) -> None:
    with amd_ops.override(tiers=tier):
        with pytest.raises(amd_ops.ArgumentError, match=message):
            amd_ops.rms_norm(*args, form=form)
        with pytest.raises(amd_ops.ArgumentError, match=message):
            amd_ops.add_rms_norm(args[0], args[0], *args[1:], form=form)


def test_a_residual_that_does_not_fit_is_named() -> None:
    with pytest.raises(amd_ops.ArgumentError, match=r"residual is \[1, 8\]"):
        amd_ops.add_rms_norm(X, X[:1], torch.ones(8), 1e-6)
