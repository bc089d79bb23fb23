"""Tier aiter of apply_rope: transformers' layouts and tables on kernels that want [S,B,H,D] and [S,1,1,R]."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.aiter.support import BF16, Gpu, rand
from tests.doubles import formulas

BATCH, HEADS, KV_HEADS, ROWS, SIZE = 2, 4, 2, 5, 32
LEFT_PADDED = torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])


def _inputs(unsqueeze_dim: int, dtype: torch.dtype = BF16, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    shapes = [(BATCH, rows, heads, SIZE) for heads in (HEADS, KV_HEADS)]
    q, k = (torch.randn(shape).to(dtype) for shape in shapes)
    return (q, k) if unsqueeze_dim == 2 else (q.transpose(1, 2), k.transpose(1, 2))


def _check(results: tuple[Tensor, Tensor], data: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, dim: int) -> None:
    for out, given in zip(results, data, strict=True):
        assert out.shape == given.shape
        assert out.dtype == given.dtype
        formulas.close(out, formulas.rope(given, cos.unsqueeze(dim), sin.unsqueeze(dim)), 2.0)


@pytest.mark.parametrize("unsqueeze_dim", [1, 2])
@pytest.mark.parametrize("width", [SIZE, SIZE // 2])
@pytest.mark.parametrize("batch", [1, BATCH])
def test_equal_rows_are_taken_with_one_launch(gpu: Gpu, unsqueeze_dim: int, width: int, batch: int) -> None:
    q, k = _inputs(unsqueeze_dim)
    cos, sin = formulas.rope_tables(torch.arange(3, 3 + ROWS).expand(batch, ROWS), width, BF16)
    kept = q.clone(), k.clone()
    results, _ = gpu.takes("apply_rope", q, k, cos, sin, unsqueeze_dim)
    assert q.equal(kept[0])
    assert k.equal(kept[1])
    _check(results, (q, k), cos, sin, unsqueeze_dim)


@pytest.mark.parametrize("unsqueeze_dim", [1, 2])
def test_unequal_rows_are_right(gpu: Gpu, unsqueeze_dim: int) -> None:
    """Left padding gives every row of the batch its own positions; row 0's table serves nobody else."""
    q, k = _inputs(unsqueeze_dim)
    cos, sin = formulas.rope_tables(LEFT_PADDED, SIZE, BF16)
    results, _ = gpu.takes("apply_rope", q, k, cos, sin, unsqueeze_dim)
    _check(results, (q, k), cos, sin, unsqueeze_dim)


def test_decode_of_one_position(gpu: Gpu) -> None:
    q, k = _inputs(1, rows=1)
    cos, sin = formulas.rope_tables(torch.tensor([[7], [3]]), SIZE, BF16)
    results, _ = gpu.takes("apply_rope", q, k, cos, sin)
    _check(results, (q, k), cos, sin, 1)


def test_contiguous_head_major_inputs(primary: Gpu) -> None:
    q, k = (t.contiguous() for t in _inputs(1))
    cos, sin = formulas.rope_tables(LEFT_PADDED, SIZE, BF16)
    results, _ = primary.takes("apply_rope", q, k, cos, sin)
    _check(results, (q, k), cos, sin, 1)


def test_float16(primary: Gpu) -> None:
    q, k = _inputs(1, torch.float16)
    cos, sin = formulas.rope_tables(LEFT_PADDED, SIZE, torch.float16)
    results, _ = primary.takes("apply_rope", q, k, cos, sin)
    _check(results, (q, k), cos, sin, 1)


def test_tables_whose_halves_differ_are_right(primary: Gpu) -> None:
    """Nothing promises that the halves of the table are equal (multi-axis positions): they must not be assumed."""
    q, k = _inputs(1)
    cos, sin = rand(BATCH, ROWS, SIZE), rand(BATCH, ROWS, SIZE)
    _check(primary.right("apply_rope", q, k, cos, sin), (q, k), cos, sin, 1)


def test_float32_is_declined(primary: Gpu) -> None:
    q, k = _inputs(1, torch.float32)
    cos, sin = formulas.rope_tables(LEFT_PADDED, SIZE)
    results, reason = primary.declines("apply_rope", q, k, cos, sin)
    assert "float32" in reason
    _check(results, (q, k), cos, sin, 1)


def test_gradients_are_declined_and_flow(one: Gpu) -> None:
    q, k = _inputs(1)
    q.requires_grad_()
    cos, sin = formulas.rope_tables(LEFT_PADDED, SIZE, BF16)
    with torch.enable_grad():
        (out, _), reason = one.declines("apply_rope", q, k, cos, sin)
        out.sum().backward()
    assert "grad" in reason
    assert q.grad is not None


def test_empty_inputs_never_reach_the_kernel(one: Gpu) -> None:
    q, k = _inputs(1, rows=0)
    cos, sin = formulas.rope_tables(torch.zeros(BATCH, 0), SIZE, BF16)
    (out, _), _ = one.declines("apply_rope", q, k, cos, sin, strict_error=False)
    assert out.shape == q.shape
    assert one.double.kernels() == []
