"""Every tier against fp64 formulas, over shapes, strides, dtypes, masks, windows and lengths that nobody picked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import amd_ops
from tests.aiter.support import ON
from tests.doubles.aiter import fake_aiter
from tests.ops import reference

TIERS = ("aiter,torch,eager", "torch,eager", "eager")
HALF = (torch.bfloat16, torch.float16)
DTYPES = (*HALF, torch.float32)
QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=TIERS, autouse=True)
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    with (
        fake_aiter("v0.1.20.post1", "gfx942", 304),
        amd_ops.override(**ON, tiers=request.param),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
        yield request.param


@pytest.fixture(autouse=True)
def clean_toggles() -> None:
    """Instead of the package's own: the toggles of the tier hold for the whole module."""


def numbers(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def strided(x: Tensor, how: int) -> Tensor:
    """The same values: dense, with a last dimension of stride 2, or with the first two dimensions swapped in memory."""
    if how == 1:
        return torch.stack((x, torch.full_like(x, 7.0)), -1)[..., 0]
    return x.transpose(0, 1).contiguous().transpose(0, 1) if how == 2 and x.dim() > 1 else x


dims = st.integers(0, 5)
seeds = st.integers(0, 2**16)
strides = st.integers(0, 2)


@QUICK
@given(
    seeds,
    st.sampled_from(DTYPES),
    dims,
    st.integers(1, 4),
    st.sampled_from([1, 2, 8, 40]),
    dims,
    strides,
    st.booleans(),
)
def test_linear(seed: int, dtype: torch.dtype, batch: int, rows: int, k: int, n: int, how: int, biased: bool) -> None:
    x, weight = strided(numbers(seed, dtype, batch, rows, k), how), numbers(seed + 1, dtype, n, k)
    bias = numbers(seed + 2, dtype, n) if biased else None
    want = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    reference.close(amd_ops.linear(x, weight, bias), want, 2.0)


@QUICK
@given(
    seeds,
    st.sampled_from(DTYPES),
    dims,
    st.integers(1, 4),
    st.sampled_from([1, 8, 33]),
    strides,
    st.sampled_from(["llama", "gemma", "fp32_weight", "t5"]),
)
def test_norms(seed: int, dtype: torch.dtype, batch: int, rows: int, width: int, how: int, form: str) -> None:
    x, residual = (strided(numbers(seed + i, dtype, batch, rows, width), how) for i in (0, 1))
    weight = numbers(seed + 2, dtype, width)
    reference.close(amd_ops.rms_norm(x, weight, 1e-5, form=form), reference.rms_norm(x, weight, 1e-5, form), 2.0)
    normed, total = amd_ops.add_rms_norm(x, residual, weight, 1e-5, form=form)
    reference.close(total, x.double() + residual.double())
    # The sum is rounded before or inside the norm; where it cancels, that rounding is all there is of the row.
    reference.close(normed, reference.rms_norm(total, weight, 1e-5, form), 6.0)


GATED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": amd_ops.silu_and_mul,
    "gelu": amd_ops.gelu_and_mul,
    "gelu_tanh": amd_ops.gelu_tanh_and_mul,
}


@QUICK
@given(
    seeds, st.sampled_from(DTYPES), dims, st.integers(1, 4), st.integers(0, 9), strides, st.sampled_from(sorted(GATED))
)
def test_activations(seed: int, dtype: torch.dtype, batch: int, rows: int, half: int, how: int, kind: str) -> None:
    x = strided(numbers(seed, dtype, batch, rows, 2 * half), how)
    reference.close(GATED[kind](x), reference.gated(x, kind), 2.0)


@QUICK
@given(
    seeds,
    st.sampled_from(DTYPES),
    st.integers(1, 3),
    dims,
    st.sampled_from([8, 16]),
    st.sampled_from([2, 8]),
    st.integers(1, 2),
    st.booleans(),
)
def test_rope(seed: int, dtype: torch.dtype, batch: int, rows: int, size: int, width: int, dim: int, own: bool) -> None:
    shapes = [(batch, heads, rows, size) if dim == 1 else (batch, rows, heads, size) for heads in (4, 2)]
    q, k = (numbers(seed + i, dtype, *shape) for i, shape in enumerate(shapes))
    angles = numbers(seed + 3, torch.float32, batch if own else 1, rows, width // 2).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    got = amd_ops.apply_rope(q, k, cos, sin, dim)
    for out, x in zip(got, (q, k), strict=True):
        reference.close(out, reference.rope(x, cos, sin, dim), 2.0)


@st.composite
def attention_calls(draw: st.DrawFn) -> tuple[list[Tensor], dict[str, Any]]:
    seed, dtype = draw(seeds), draw(st.sampled_from(DTYPES))
    batch, rows, extra, size = draw(st.integers(1, 2)), draw(st.integers(0, 5)), draw(st.integers(0, 4)), 8
    kv, groups, how = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(strides)
    columns = rows + extra
    shapes = ((batch, rows, kv * groups, size), (batch, columns, kv, size), (batch, columns, kv, size))
    tensors = [strided(numbers(seed + i, dtype, *shape), how) for i, shape in enumerate(shapes)]
    options: dict[str, Any] = {"is_causal": draw(st.booleans()), "scaling": draw(st.sampled_from([None, 0.3]))}
    if draw(st.booleans()):
        options["sliding_window"] = draw(st.integers(1, 6))
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([0.5, 5.0]))
    if draw(st.booleans()):
        options["sinks"] = numbers(seed + 4, dtype, kv * groups)
    kind = draw(st.sampled_from(["none", "padding", "any", "bias"]))
    if kind == "bias":
        options["attention_mask"] = numbers(seed + 5, dtype, batch, 1, rows, columns)
    elif kind == "any":
        options["attention_mask"] = numbers(seed + 5, torch.float32, batch, 1, rows, columns) > 0
    elif kind == "padding":
        pads = draw(st.lists(st.integers(0, max(0, columns - 1)), min_size=batch, max_size=batch))
        keep = torch.arange(columns)[None, :] >= torch.tensor(pads)[:, None]
        options["attention_mask"] = keep[:, None, None, :].expand(batch, 1, rows, columns)
    return tensors, options


@QUICK
@given(attention_calls())
def test_attention(call: tuple[list[Tensor], dict[str, Any]]) -> None:
    tensors, options = call
    out = amd_ops.attention(*tensors, **options)
    reference.close(out, reference.attention(*tensors, **options), 3.0)
