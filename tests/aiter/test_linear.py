"""Tier aiter of linear and apply_linear: gemm_a16w16, which came with v0.1.6.post1."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

import amd_ops
from amd_ops.backends.aiter import linear as backend
from amd_ops.gemm_tables import GemmTable
from tests.aiter.support import BF16, Gpu, rand
from tests.doubles import formulas
from tests.doubles.aiter import fake_aiter

BEFORE_GEMM = "v0.1.5.post4"


@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (2, 3, 64), (1, 2, 3, 64)])
@pytest.mark.parametrize("biased", [False, True])
def test_taken_with_one_launch(gpu: Gpu, shape: tuple[int, ...], biased: bool) -> None:
    x, weight, bias = rand(*shape), rand(48, 64), rand(48) if biased else None
    if gpu.version == BEFORE_GEMM:
        out, reason = gpu.declines("linear", x, weight, bias)
        assert "gemm_a16w16" in reason
        return formulas.close(out, formulas.linear(x, weight, bias), 2.0)
    out, (call,) = gpu.takes("linear", x, weight, bias)
    assert call.name == "gemm_a16w16"
    assert out.shape == (*shape[:-1], 48)
    assert out.dtype == BF16
    formulas.close(out, formulas.linear(x, weight, bias), 1.0)


def test_half_precision_float16(primary: Gpu) -> None:
    x, weight = rand(3, 64, dtype=torch.float16), rand(48, 64, dtype=torch.float16)
    out, _ = primary.takes("linear", x, weight)
    formulas.close(out, formulas.linear(x, weight), 1.0)


def _strided() -> list[Tensor]:
    return [
        rand(3, 2, 64).transpose(0, 1),
        rand(3, 128)[:, 32:96],
        rand(2, 3, 128)[..., :64],
        rand(1, 64).expand(3, 64),
    ]


@pytest.mark.parametrize("index", range(4))
def test_strided_inputs_reach_the_kernel_contiguous(primary: Gpu, index: int) -> None:
    x, weight = _strided()[index], rand(48, 64)
    out, (call,) = primary.takes("linear", x, weight)
    assert len(call["A"].shape) == 2
    formulas.close(out, formulas.linear(x, weight), 1.0)


def test_rows_of_a_packed_weight_are_taken(primary: Gpu) -> None:
    x, packed = rand(3, 64), rand(96, 64)
    out, _ = primary.takes("linear", x, packed[32:80])
    formulas.close(out, formulas.linear(x, packed[32:80]), 1.0)


def test_a_transposed_weight_is_right(primary: Gpu) -> None:
    x, weight = rand(3, 64), rand(64, 48).t()
    out, reason = primary.declines("linear", x, weight)
    assert "weight" in reason
    formulas.close(out, formulas.linear(x, weight), 1.0)


def test_a_vector_is_right(primary: Gpu) -> None:
    x, weight = rand(64), rand(48, 64)
    out, _ = primary.declines("linear", x, weight)
    formulas.close(out, formulas.linear(x, weight), 1.0)


def test_weights_of_zeros_do_not_look_broken(primary: Gpu) -> None:
    """A fresh adapter's second matrix is all zeros; its shape must not be given up for that."""
    x, zeros = rand(3, 64), torch.zeros(48, 64, dtype=BF16)
    out, _ = primary.takes("linear", x, zeros)
    assert not out.any()
    primary.takes("linear", x, rand(48, 64))


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
def test_empty_inputs_never_reach_the_kernel(one: Gpu, shape: tuple[int, ...]) -> None:
    out, _ = one.declines("linear", rand(*shape), rand(48, 64), strict_error=False)
    assert out.shape == (*shape[:-1], 48)
    assert one.double.kernels() == []


def test_float32_is_declined(primary: Gpu) -> None:
    x, weight = rand(3, 64, dtype=torch.float32), rand(48, 64, dtype=torch.float32)
    out, reason = primary.declines("linear", x, weight)
    assert "float32" in reason
    formulas.close(out, formulas.linear(x, weight), 8.0)


def test_mixed_dtypes_are_an_error_that_names_the_argument(one: Gpu) -> None:
    with pytest.raises(amd_ops.ArgumentError, match="weight"):
        amd_ops.linear(rand(3, 64), rand(48, 64, dtype=torch.float32))
    assert one.double.calls == []


@pytest.mark.parametrize("leaf", ["x", "weight", "bias"])
def test_gradients_are_declined_and_flow(one: Gpu, leaf: str) -> None:
    tensors = {"x": rand(3, 64), "weight": rand(48, 64), "bias": rand(48)}
    tensors[leaf].requires_grad_()
    with torch.enable_grad():
        out, reason = one.declines("linear", *tensors.values())
        out.sum().backward()
    assert "grad" in reason
    assert tensors[leaf].grad is not None
    one.takes("linear", *tensors.values())


def test_apply_linear_takes_a_plain_module(primary: Gpu) -> None:
    module, x = nn.Linear(64, 48).to(BF16), rand(2, 3, 64)
    amd_ops.apply_linear(module, x)
    primary.double.clear()
    out = amd_ops.apply_linear(module, x)
    assert primary.double.kernels() == ["gemm_a16w16"]
    formulas.close(out, formulas.linear(x, module.weight, module.bias), 1.0)


def test_apply_linear_calls_a_module_with_a_hook(one: Gpu) -> None:
    module, x, seen = nn.Linear(64, 48).to(BF16), rand(3, 64), []
    module.register_forward_hook(lambda *_: seen.append(1))
    with amd_ops.override(strict=0), pytest.warns(amd_ops.DeclinedWarning, match="hook"):
        amd_ops.apply_linear(module, x)
    assert seen == [1]
    assert one.double.kernels() == []


def test_the_merged_table_is_in_place_before_the_gemm_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiter reads its tables when aiter.tuned_gemm is imported: they are settled first, once, and reported."""
    asked: list[tuple[str, int, bool]] = []

    def settle(arch: str, cu_count: int) -> GemmTable:
        asked.append((arch, cu_count, "aiter.tuned_gemm" in sys.modules))
        return GemmTable("/cache/table.csv", "merged", 7, "built from 2 files")

    monkeypatch.setattr(backend, "_gemm_table", None)
    monkeypatch.setattr(backend, "ensure_merged_table", settle)
    with fake_aiter("v0.1.9.post1", "gfx942", 304), torch.no_grad():
        with amd_ops.override(use_optimized_ops=1):
            amd_ops.linear(rand(3, 64), rand(48, 64))
        assert asked == []
        for _ in range(2):
            with amd_ops.override(use_aiter_gemm=1):
                amd_ops.linear(rand(3, 64), rand(48, 64))
        assert asked == [("gfx942", 304, False)]
        report = amd_ops.report()
    assert report.as_dict()["gemm_table"]["rows"] == 7
    assert "GEMM table: built from 2 files" in str(report)
