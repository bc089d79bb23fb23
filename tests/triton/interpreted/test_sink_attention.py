"""A decode step with sinks in one launch, against fp64 and against gpt_oss's own eager function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import amd_ops
from amd_ops.backends.triton import sink_attention as tier
from amd_ops.ops.sink_attention import eager_sink_attention

from .support import DTYPES, few, ran

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def inputs(batch: int, kv_heads: int, groups: int, columns: int, dtype: torch.dtype, size: int = 24) -> list[Tensor]:
    q = torch.randn(batch, 1, kv_heads * groups, size).to(dtype).transpose(1, 2)
    k = torch.randn(batch, columns, kv_heads, size).to(dtype).transpose(1, 2)
    v = torch.randn(batch, kv_heads, columns, size).to(dtype)
    return [q, k, v, torch.randn(kv_heads * groups).to(dtype)]


def masked(kind: str, batch: int, columns: int, dtype: torch.dtype, longer: int = 0) -> Tensor | None:
    if not kind:
        return None
    seen = torch.rand(batch, 1, 1, columns + longer) > 0.4
    return seen if kind == "bool" else torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)


@few(20)
@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    groups=st.sampled_from((1, 3, 4)),
    columns=st.sampled_from((1, 5, 64, 300)),
    size=st.sampled_from((8, 24, 64)),
    mask=st.sampled_from(("", "bool", "add")),
    longer=st.sampled_from((0, 3)),
    dtype=st.sampled_from(DTYPES),
)
def test_it_agrees_with_fp64(
    batch: int, kv_heads: int, groups: int, columns: int, size: int, mask: str, longer: int, dtype: torch.dtype
) -> None:
    call = inputs(batch, kv_heads, groups, columns, dtype, size)
    hidden = masked(mask, batch, columns, dtype, longer)
    got = tier.launch_sink_attention(*call, 0.3, hidden, wave=32)
    plain = hidden if hidden is None or hidden.dtype is torch.bool else hidden.double()
    want = eager_sink_attention(*(one.double() for one in call), 0.3, plain)
    assert got.is_contiguous()
    assert got.shape == (batch, 1, kv_heads * groups, size)
    assert (got.double() - want).abs().max() <= TOLERANCE[dtype] * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 4])
def test_it_is_what_gpt_oss_computes(asked: None, dtype: torch.dtype, window: int | None) -> None:
    stock = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss").eager_attention_forward
    q, k, v, sinks = inputs(2, 2, 3, 11, dtype)
    module = nn.Module()
    module.num_key_value_groups, module.sinks = 3, nn.Parameter(sinks, requires_grad=False)
    module.eval()
    key = torch.arange(11)
    seen = (key >= torch.tensor([0, 3]).view(2, 1, 1, 1)) & (key > 10 - (window or 99)) & (key < 11)
    hidden = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    want, _ = stock(module, q, k, v, hidden, scaling=0.2)
    with amd_ops.override(use_aiter_attention=1):
        got = amd_ops.sink_attention(q, k, v, module.sinks, scaling=0.2, attention_mask=hidden)
        assert ran("sink_attention") == 1
    assert (got.float() - want.float()).abs().max() <= 2 * TOLERANCE[dtype]


def test_slots_that_are_not_seen_may_hold_anything_and_a_query_that_sees_nothing_gives_zeros() -> None:
    q, k, v, sinks = inputs(2, 1, 2, 8, torch.float32)
    seen = torch.zeros(2, 1, 1, 8, dtype=torch.bool)
    seen[0, ..., :5] = True
    clean = tier.launch_sink_attention(q, k, v, sinks, None, seen, wave=32)
    k[:, :, 5:], v[:, :, 5:] = float("nan"), float("nan")
    got = tier.launch_sink_attention(q, k, v, sinks, None, seen, wave=32)
    assert torch.equal(got[0], clean[0])
    assert (got[1] == 0).all()
    none = tier.launch_sink_attention(q, k, v, torch.full((2,), -float("inf")), None, seen, wave=32)
    assert (none[1] == 0).all()


def test_a_nan_among_what_is_seen_stays_one() -> None:
    q, k, v, sinks = inputs(1, 1, 2, 8, torch.float32)
    k[0, 0, 3, 1] = float("nan")
    assert tier.launch_sink_attention(q, k, v, sinks, None, None, wave=32).isnan().all()


def test_what_it_does_not_take_is_declined_with_the_reason(asked: None) -> None:
    q, k, v, sinks = inputs(1, 2, 2, 8, torch.float32)
    mask = torch.zeros(1, 1, 1, 8)
    cases: list[tuple[Any, str]] = [
        ((torch.randn(1, 4, 2, 24), k, v, sinks, mask), "not one query per sequence"),
        ((q, k, v.bfloat16(), sinks, mask), "differ in dtype"),
        ((q, k.mT.contiguous().mT, v, sinks, mask), "not dense"),
        ((q, k, v, sinks, mask.double()), "neither bool nor"),
        ((q, k, v, sinks, torch.zeros(1, 1, 1, 1)), r"the mask is not \[B or 1, H or 1, 1, Sk\]"),
    ]
    with amd_ops.override(use_aiter_attention=1):
        for (*tensors, hidden), reason in cases:
            with pytest.raises(amd_ops.DeclinedError, match=reason):
                amd_ops.sink_attention(*tensors, attention_mask=hidden)


def test_gradients_and_no_keys_are_left_to_the_formula(asked: None) -> None:
    with amd_ops.override(use_aiter_attention=1):
        with torch.enable_grad():
            q, k, v, sinks = (one.detach().requires_grad_() for one in inputs(1, 1, 2, 4, torch.float32))
            amd_ops.sink_attention(q, k, v, sinks).sum().backward()
        assert (amd_ops.sink_attention(*inputs(1, 1, 2, 0, torch.float32)) == 0).all()
        assert ran("sink_attention") == 0


def test_force_eager_attention_skips_it(asked: None) -> None:
    with amd_ops.override(use_aiter_attention=1, force_eager_attention=1):
        amd_ops.sink_attention(*inputs(1, 1, 2, 4, torch.float32))
        assert ran("sink_attention") == 0
