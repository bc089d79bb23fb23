"""Tier aiter of rms_norm and add_rms_norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import amd_ops
from tests.aiter.support import BF16, Gpu, rand
from tests.doubles import formulas
from tests.doubles.aiter.rounding import BIAS, narrowed, truncates

EPS = 1e-6
SHAPES = [(3, 32), (2, 3, 32), (2, 3, 4, 32), (32,)]  # the third: q_norm/k_norm on [B,S,H,D]
ULPS = {"llama": 2.0, "gemma": 2.5}


def declined_gemma(gpu: Gpu, op: str, form: str, *tensors: Tensor) -> bool:
    """Before gemma_norm existed, adding 1 to a bf16 weight would round it: that form is declined, and right."""
    if form != "gemma" or gpu.has_gemma_norm:
        return False
    result, reason = gpu.declines(op, *tensors, EPS, form="gemma")
    assert "gemma_norm" in reason
    total = tensors[0].double() + (tensors[1].double() if op == "add_rms_norm" else 0.0)
    out = result[0] if op == "add_rms_norm" else result
    formulas.close(out, formulas.rms_norm(total, tensors[-1], EPS, gemma=True), 3.5)
    return True


@pytest.mark.parametrize("form", ["llama", "gemma"])
@pytest.mark.parametrize("shape", SHAPES)
def test_taken_with_one_launch(gpu: Gpu, form: str, shape: tuple[int, ...]) -> None:
    x, weight = rand(*shape) * 3, rand(32)
    if declined_gemma(gpu, "rms_norm", form, x, weight):
        return
    out, (call,) = gpu.takes("rms_norm", x, weight, EPS, form=form)
    assert len(call["input"].shape) == 2
    assert out.shape == shape
    assert out.dtype == BF16
    formulas.close(out, formulas.rms_norm(x, weight, EPS, gemma=form == "gemma"), ULPS[form])


def test_llama_rounds_where_transformers_does(gpu: Gpu) -> None:
    """Normalise in fp32, to bf16, then multiply by the weight and to bf16: to the nearest as the stock module, or, on a
    chip whose kernels cut, with both roundings towards zero.
    """
    x, weight = rand(5, 256), rand(256)
    out, _ = gpu.takes("rms_norm", x, weight, EPS)
    data = x.float()
    normed = data * torch.rsqrt(data.pow(2).mean(-1, keepdim=True) + EPS)
    arch = gpu.double.arch
    same = narrowed(weight.float() * narrowed(normed, BF16, arch, "norm").float(), BF16, arch, "norm")
    assert float((out != same).float().mean()) < 0.02
    stock = weight * normed.to(BF16)
    formulas.close(out, stock.double(), 3.01 if truncates(arch, "norm") else 1.01)
    shift = float(((out.float() - stock.float()) / stock.float()).nan_to_num(0.0, 0.0, 0.0).mean())
    assert -2.5 * BIAS < shift < -1.5 * BIAS if truncates(arch, "norm") else abs(shift) < 1e-4


@pytest.mark.parametrize("form", ["llama", "gemma"])
def test_small_weights_keep_their_precision(gpu: Gpu, form: str) -> None:
    """Gemma weights lie around 0: 1 + w must not lose them."""
    x, weight = rand(4, 64), rand(64) * 0.01
    if declined_gemma(gpu, "rms_norm", form, x, weight):
        return
    out, _ = gpu.takes("rms_norm", x, weight, EPS, form=form)
    formulas.close(out, formulas.rms_norm(x, weight, EPS, gemma=form == "gemma"), ULPS[form])


def _strided() -> list[Tensor]:
    return [rand(3, 2, 32).transpose(0, 1), rand(3, 64)[:, 16:48], rand(2, 3, 4, 32).transpose(1, 2)]


@pytest.mark.parametrize("index", range(3))
def test_strided_inputs_are_right(primary: Gpu, index: int) -> None:
    x, weight = _strided()[index], rand(32)
    out, _ = primary.takes("rms_norm", x, weight, EPS)
    formulas.close(out, formulas.rms_norm(x, weight, EPS), 2.0)


@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32)])
def test_empty_inputs_never_reach_the_kernel(one: Gpu, shape: tuple[int, ...]) -> None:
    out, _ = one.declines("rms_norm", rand(*shape), rand(32), EPS, strict_error=False)
    assert out.shape == shape
    assert one.double.kernels() == []


def test_float32_weight_on_bfloat16_input_is_declined(primary: Gpu) -> None:
    x, weight = rand(3, 32), rand(32, dtype=torch.float32)
    out, reason = primary.declines("rms_norm", x, weight, EPS)
    assert "dtype" in reason or "float32" in reason
    formulas.close(out, formulas.rms_norm(x, weight, EPS), 2**16)  # fp32 result of a bf16 rounding
    assert out.dtype == torch.float32  # as the stock module does


def test_float32_is_declined(primary: Gpu) -> None:
    x, weight = rand(3, 32, dtype=torch.float32), rand(32, dtype=torch.float32)
    out, reason = primary.declines("rms_norm", x, weight, EPS)
    assert "float32" in reason
    formulas.close(out, formulas.rms_norm(x, weight, EPS), 8.0)


@pytest.mark.parametrize("leaf", [0, 1])
def test_gradients_are_declined_and_flow(one: Gpu, leaf: int) -> None:
    tensors = [rand(3, 32), rand(32)]
    tensors[leaf].requires_grad_()
    with torch.enable_grad():
        out, reason = one.declines("rms_norm", *tensors, EPS)
        out.sum().backward()
    assert "grad" in reason
    assert tensors[leaf].grad is not None


@pytest.mark.parametrize("form", ["llama", "gemma"])
@pytest.mark.parametrize("shape", SHAPES)
def test_add_norm_taken_with_one_launch(gpu: Gpu, form: str, shape: tuple[int, ...]) -> None:
    x, residual, weight = rand(*shape), rand(*shape) * 3, rand(32)
    kept = x.clone(), residual.clone()
    if declined_gemma(gpu, "add_rms_norm", form, x, residual, weight):
        return
    (out, total), _ = gpu.takes("add_rms_norm", x, residual, weight, EPS, form=form)
    assert x.equal(kept[0])
    assert residual.equal(kept[1])
    formulas.close(total, x.double() + residual.double(), 1.0)
    expected = formulas.rms_norm(x.double() + residual.double(), weight, EPS, gemma=form == "gemma")
    formulas.close(out, expected, ULPS[form] + 1.0)


def test_gemma_add_norm_is_not_the_plain_norm(gpu: Gpu) -> None:
    """gemma_norm stands before use_model_sensitive_rmsnorm in newer tags: keywords, never positions."""
    x, residual, weight = rand(3, 32), rand(3, 32), rand(32)
    if declined_gemma(gpu, "add_rms_norm", "gemma", x, residual, weight):
        return
    (gemma, _), _ = gpu.takes("add_rms_norm", x, residual, weight, EPS, form="gemma")
    (llama, _), _ = gpu.takes("add_rms_norm", x, residual, weight, EPS, form="llama")
    total = x.double() + residual.double()
    formulas.close(gemma, formulas.rms_norm(total, weight, EPS, gemma=True), 3.5)
    formulas.close(llama, formulas.rms_norm(total, weight, EPS), 3.0)


def test_add_norm_of_strided_inputs(primary: Gpu) -> None:
    x, residual, weight = rand(3, 2, 32).transpose(0, 1), rand(2, 3, 32), rand(32)
    (out, total), _ = primary.takes("add_rms_norm", x, residual, weight, EPS)
    formulas.close(total, x.double() + residual.double(), 1.0)
    formulas.close(out, formulas.rms_norm(x.double() + residual.double(), weight, EPS), 3.0)


def test_add_norm_with_different_dtypes_never_reaches_the_kernel(one: Gpu) -> None:
    with pytest.raises((amd_ops.ArgumentError, amd_ops.DeclinedError)):
        amd_ops.add_rms_norm(rand(3, 32), rand(3, 32, dtype=torch.float32), rand(32), EPS)
    assert one.double.kernels() == []


def test_the_report_says_that_a_chip_cuts(primary: Gpu) -> None:
    for _ in range(2):
        amd_ops.rms_norm(rand(3, 64), rand(64), EPS)
    notes = amd_ops.report().as_dict()["notes"]
    told = [note for note in notes if "cut, not rounded" in note]
    assert bool(told) is truncates(primary.double.arch, "norm")
    if told:
        assert notes[told[0]] == 2
        assert told[0] in str(amd_ops.report())
