"""attention on every CPU tier against a query-by-query fp64 reference, and its error messages."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import amd_ops

from . import reference
from .test_norm import DTYPES


@st.composite
def calls(draw: st.DrawFn) -> dict:
    """One call: shapes with q_len shorter, equal or longer than k_len, layouts, and any mix of features."""
    batch, rows, columns = draw(st.integers(1, 2)), draw(st.integers(1, 6)), draw(st.integers(1, 7))
    kv_heads, groups, size = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.sampled_from((1, 4, 8)))
    dtype = draw(st.sampled_from(DTYPES))
    seed = draw(st.integers(0, 1000))
    torch.manual_seed(seed)

    def heads(length: int, count: int) -> Tensor:
        x = torch.randn(batch, length, count, size).to(dtype)
        return x if draw(st.booleans()) else x.transpose(1, 2).contiguous().transpose(1, 2)

    call = {"query": heads(rows, kv_heads * groups), "key": heads(columns, kv_heads), "value": heads(columns, kv_heads)}
    call["is_causal"] = draw(st.booleans())
    call["scaling"] = draw(st.sampled_from((None, 0.3)))
    call["sliding_window"] = draw(st.sampled_from((None, None, 1, 3, 100)))
    call["softcap"] = draw(st.sampled_from((None, None, 2.0)))
    kind = draw(st.sampled_from((None, "bool", "additive", "broadcast")))
    if kind is not None:
        shape = (1, 1, rows, columns) if kind == "broadcast" else (batch, kv_heads * groups, rows, columns)
        seen = torch.rand(shape) > 0.3
        call["attention_mask"] = torch.randn(shape).to(dtype) if kind == "additive" else seen
    if draw(st.integers(0, 3)) == 0:
        call["sinks"] = torch.randn(kv_heads * groups).to(dtype)
    return call


@settings(max_examples=150, deadline=None)
@given(call=calls(), tiers=st.sampled_from(("torch,eager", "eager")))
def test_every_tier_agrees_with_fp64(call: dict, tiers: str) -> None:
    with amd_ops.override(tiers=tiers):
        out = amd_ops.attention(**call)
    assert out.is_contiguous()
    assert out.dtype is call["query"].dtype
    reference.close(out, reference.attention(**call), 8.0)


@pytest.mark.parametrize("tiers", ["torch,eager", "eager"])
@pytest.mark.parametrize(("batch", "rows", "columns"), [(0, 3, 3), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_zero_sizes(tiers: str, batch: int, rows: int, columns: int, causal: bool) -> None:
    q, k = torch.randn(batch, rows, 4, 8), torch.randn(batch, columns, 2, 8)
    with amd_ops.override(tiers=tiers):
        out = amd_ops.attention(q, k, k, is_causal=causal)
    assert out.shape == (batch, rows, 4, 8)
    assert not out.any(), "a query without keys gives zeros"


def test_values_may_have_another_size() -> None:
    q, k, v = torch.randn(1, 3, 4, 8), torch.randn(1, 5, 2, 8), torch.randn(1, 5, 2, 12)
    for tiers in ("torch,eager", "eager"):
        with amd_ops.override(tiers=tiers):
            reference.close(amd_ops.attention(q, k, v), reference.attention(q, k, v), 8.0)


def test_causality_is_counted_from_the_last_key() -> None:
    """torch's own is_causal would let the single query of a decode step see the first key only."""
    q, k = torch.randn(1, 1, 2, 8), torch.randn(1, 8, 2, 8)
    v = torch.randn(1, 8, 2, 8)
    topleft = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    torch.testing.assert_close(topleft[0, 0], v[0, 0])
    out = amd_ops.attention(q, k, v)
    reference.close(out, reference.attention(q, k, v), 8.0)
    assert not torch.allclose(out[0, 0], v[0, 0], atol=0.1)


def test_a_long_cache_takes_no_mask_for_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def spy(q: Tensor, k: Tensor, v: Tensor, **kwargs: object) -> Tensor:
        seen.update(kwargs)
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    amd_ops.attention(torch.randn(1, 1, 4, 8), torch.randn(1, 9, 2, 8), torch.randn(1, 9, 2, 8))
    assert seen["attn_mask"] is None
    assert seen["is_causal"] is False
    assert seen["enable_gqa"] is True
    amd_ops.attention(torch.randn(1, 9, 2, 8), torch.randn(1, 9, 2, 8), torch.randn(1, 9, 2, 8))
    assert seen["is_causal"] is True


def test_features_that_sdpa_lacks_go_to_eager_with_a_reason() -> None:
    q = torch.randn(1, 3, 2, 8)
    amd_ops.attention(q, q, q, softcap=3.0)
    amd_ops.attention(q, q, q, sinks=torch.zeros(2))
    amd_ops.attention(q, q, q)
    report = amd_ops.report()
    assert (report.calls("attention", "torch"), report.calls("attention", "eager")) == (1, 2)
    assert "SDPA has no soft cap" in str(report)
    assert "SDPA has no sinks" in str(report)


def test_force_eager_skips_the_tiers_above() -> None:
    q = torch.randn(1, 3, 2, 8)
    with amd_ops.override(force_eager_attention=1, use_aiter_attention=1):
        amd_ops.attention(q, q, q)
        assert amd_ops.report().calls("attention", "eager") == 1
        assert "FORCE_EAGER_ATTENTION=1 skips it" in str(amd_ops.report())


def test_dropout_keeps_the_mean() -> None:
    q = torch.zeros(1, 1, 1, 4)
    k, v = torch.zeros(1, 2000, 1, 4), torch.ones(1, 2000, 1, 4)
    for tiers in ("torch,eager", "eager"):
        with amd_ops.override(tiers=tiers):
            out = amd_ops.attention(q, k, v, dropout=0.5)
        assert not torch.equal(out, torch.ones_like(out))
        assert abs(float(out.mean()) - 1.0) < 0.15


def test_nan_inputs_stay_nan() -> None:
    """Zeroing the rows that see no key must not hide a NaN. (torch's own CPU kernel does hide it, with or without
    us.)
    """
    q = torch.full((1, 2, 1, 8), float("nan"))
    k = torch.randn(1, 2, 1, 8)
    with amd_ops.override(tiers="eager"):
        assert amd_ops.attention(q, k, k).isnan().all()


def test_gradients_agree() -> None:
    grads = []
    for tiers in ("torch,eager", "eager"):
        torch.manual_seed(3)
        q, k, v = (torch.randn(2, 5, heads, 8).requires_grad_() for heads in (4, 2, 2))
        with amd_ops.override(tiers=tiers):
            amd_ops.attention(q, k, v, sliding_window=3).square().sum().backward()
        grads.append((q.grad, k.grad, v.grad))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_an_additive_mask_of_another_dtype_keeps_rows_finite() -> None:
    q = torch.randn(1, 3, 2, 8).bfloat16()
    mask = torch.zeros(1, 1, 3, 3)
    mask[..., 1, :] = torch.finfo(torch.float32).min
    assert amd_ops.attention(q, q, q, attention_mask=mask, is_causal=False).isfinite().all()


Q, K = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 2, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": Q[0]}, r"query is \[3, 4, 8\].*expected a float tensor \[B, S, H, D\]"),
        ({"query": Q.long()}, "query is .*int64"),
        ({"value": 3}, "value is int"),
        ({"key": torch.randn(2, 5, 3, 8), "value": torch.randn(2, 5, 3, 8)}, "of 3 heads, expected a divisor of the 4"),
        ({"key": torch.randn(2, 5, 2, 6)}, r"key is \[2, 5, 2, 6\]"),
        ({"key": torch.randn(1, 5, 2, 8)}, r"key is \[1, 5, 2, 8\]"),
        ({"value": torch.randn(2, 4, 2, 8)}, r"value is \[2, 4, 2, 8\]"),
        ({"key": K.bfloat16()}, "key is torch.bfloat16, expected torch.float32, as query"),
        ({"key": K.to("meta")}, "key is on meta, expected cpu, where query is"),
        ({"scaling": float("nan")}, "scaling is nan, expected a finite number"),
        ({"scaling": float("inf")}, "scaling is inf"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"softcap": 0.0}, "softcap is 0.0"),
        ({"softcap": float("nan")}, "softcap is nan"),
        (
            {"attention_mask": torch.ones(2, 1, 3, 4, dtype=torch.bool)},
            r"attention_mask is .*broadcastable to \[2, 4, 3, 5\]",
        ),
        ({"attention_mask": torch.ones(2, 1, 3, 5, dtype=torch.long)}, "attention_mask is torch.int64, expected bool"),
        ({"sinks": torch.zeros(2)}, r"sinks is \[2\].*one per query head"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str) -> None:
    with pytest.raises(amd_ops.ArgumentError, match=message):
        amd_ops.attention(**{"query": Q, "key": K, "value": K, **change})
