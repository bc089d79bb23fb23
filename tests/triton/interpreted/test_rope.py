"""The rope kernel against fp64 and bit for bit against stock: backward, with head norms, into a static cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import amd_ops
from amd_ops.backends.triton.configs import Config
from amd_ops.backends.triton.rope import Cache, Norms, launch_rope
from amd_ops.ops.norm import eager_rms_norm
from amd_ops.ops.rope import torch_rope
from tests.ops.reference import close, rope
from tests.ops.test_rope import heads, tables

from .support import DTYPES, few, ran

CUTS = (Config(1, 16, 1), Config(2, 8, 1), Config(8, 32, 2))


@few(20)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 4),
    groups=st.integers(1, 3),
    half=st.integers(1, 8),
    rest=st.integers(0, 5),
    own_rows=st.booleans(),
    dim=st.sampled_from((1, 2)),
    dtype=st.sampled_from(DTYPES),
    cut=st.sampled_from(CUTS),
    packed=st.booleans(),
)
def test_every_shape_agrees_with_fp64_and_with_stock(
    batch: int, length: int, groups: int, half: int, rest: int, own_rows: bool, dim: int, dtype: torch.dtype,
    cut: Config, packed: bool,
) -> None:  # fmt: skip
    size = 2 * half + rest
    q, k = heads(batch, 2 * groups, length, size, dim, dtype), heads(batch, 2, length, size, dim, dtype)
    if packed:  # slices of one projection's output, as fused q/k/v makes them
        both = torch.randn(batch, length, 2 * groups + 2, size).to(dtype)
        q, k = (t.transpose(1, 2) if dim == 1 else t for t in both.split((2 * groups, 2), 2))
    cos, sin = tables(batch if own_rows else 1, length, 2 * half, dtype)
    got, want = launch_rope(q, k, cos, sin, dim, cut), torch_rope(q, k, cos, sin, dim)
    for out, x, stock in zip(got, (q, k), want, strict=True):
        close(out, rope(x, cos, sin, dim), 2.0)
        assert torch.equal(out, stock)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("table_dtype", DTYPES)
def test_tables_of_another_dtype_promote_as_in_stock(dtype: torch.dtype, table_dtype: torch.dtype) -> None:
    q, k = heads(2, 4, 3, 10, 1, dtype), heads(2, 2, 3, 10, 1, dtype)
    cos, sin = tables(2, 3, 8, table_dtype)
    for out, stock in zip(launch_rope(q, k, cos, sin, 1, CUTS[0]), torch_rope(q, k, cos, sin, 1), strict=True):
        assert out.dtype is stock.dtype
        assert torch.equal(out, stock)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (1, 1, 1, 80), (1, 3, 7, 96), (2, 0, 4, 8), (0, 2, 4, 8)])
def test_edge_shapes_through_the_public_op(asked: None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, length, count, size = shape
    q, k = heads(batch, count, length, size, 1, dtype), heads(batch, 1, length, size, 1, dtype)
    cos, sin = tables(1, length, size - size % 4 or 2, dtype)
    for out, x in zip(amd_ops.apply_rope(q, k, cos, sin), (q, k), strict=True):
        close(out, rope(x, cos, sin, 1), 2.0)
    assert ran("apply_rope") == (1 if q.numel() else 0)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_training_through_the_public_op(asked: None, dim: int, dtype: torch.dtype) -> None:
    grads = []
    for tiers in ("triton", "torch"):
        torch.manual_seed(1)
        q, k = heads(2, 4, 3, 12, dim, dtype).requires_grad_(), heads(2, 2, 3, 12, dim, dtype).requires_grad_()
        cos, sin = tables(2, 3, 8, dtype)
        with amd_ops.override(tiers=tiers), torch.enable_grad():
            turned = amd_ops.apply_rope(q, k, cos, sin, dim)
            sum(t.float().pow(3).sum() for t in turned).backward()
        grads.append((q.grad, k.grad))
    assert ran("apply_rope") == 1
    for got, want in zip(*grads, strict=True):
        tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        assert (got.float() - want.float()).norm() <= tolerance * want.float().norm()


@pytest.mark.parametrize("form", ["llama", "gemma", "fp32_weight"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "width"), [(16, 16), (24, 16), (6, 2)])
def test_head_norms_in_front_are_those_of_the_stock_modules(
    form: str, dtype: torch.dtype, size: int, width: int
) -> None:
    q, k = heads(2, 3, 3, size, 1, dtype), heads(2, 1, 3, size, 1, dtype)
    weights = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    cos, sin = tables(2, 3, width, dtype)
    got = launch_rope(q, k, cos, sin, 1, CUTS[1], norms=Norms(*weights, 1e-6, form))
    normed = [eager_rms_norm(x, w, 1e-6, form) for x, w in zip((q, k), weights, strict=True)]
    for out, stock in zip(got, torch_rope(*normed, cos, sin, 1), strict=True):
        if dtype is torch.float32:
            torch.testing.assert_close(out, stock, rtol=1e-5, atol=1e-6)
        else:  # another order of the sum of squares: at most a rounding of the norm apart, almost never
            torch.testing.assert_close(out, stock, rtol=2e-2, atol=2e-2)
            assert int((out != stock).sum()) <= max(out.numel() // 50, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [[4], [0, 1, 2], [7, 3, 9]])
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_k_and_v_go_into_a_static_cache(dtype: torch.dtype, positions: list[int], integer: torch.dtype) -> None:
    length = len(positions)
    q, k, v = (heads(2, count, length, size, 1, dtype) for count, size in ((4, 16), (2, 16), (2, 12)))
    cos, sin = tables(2, length, 16, dtype)
    keys, values = torch.randn(2, 2, 10, 16).to(dtype), torch.randn(2, 2, 10, 12).to(dtype)
    want_q, want_k = torch_rope(q, k, cos, sin, 1)
    at = torch.tensor(positions)
    want_keys, want_values = keys.clone().index_copy_(2, at, want_k), values.clone().index_copy_(2, at, v)
    out, same = launch_rope(q, k, cos, sin, 1, CUTS[1], cache=Cache(keys, values, v, at.to(integer)))
    assert same is keys
    assert torch.equal(out, want_q)
    assert torch.equal(keys, want_keys)
    assert torch.equal(values, want_values)


def test_a_position_outside_the_cache_writes_nothing() -> None:
    q, k, v = (heads(1, 2, 2, 8, 1, torch.float32) for _ in range(3))
    cos, sin = tables(1, 2, 8, torch.float32)
    room = torch.zeros(2, 1, 2, 6, 8)
    keys, values = room[0, :, :, 1:5], room[1, :, :, 1:5]
    launch_rope(q, k, cos, sin, 1, CUTS[1], cache=Cache(keys, values, v, torch.tensor([-1, 4])))
    assert not room.any()
