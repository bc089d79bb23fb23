"""Tier aiter of attention: dense, decode, chunked prefill, padding through varlen, windows, soft caps, sinks."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

import amd_ops
from amd_ops import masks
from amd_ops.backends.aiter.attention import MASKED_DECODE
from tests.aiter.support import BF16, Gpu, rand
from tests.doubles import formulas

ULPS = 2.0


def qkv(rows: int, columns: int, size: int = 16, heads: int = 4, kv_heads: int = 2, batch: int = 2) -> list[Tensor]:
    shapes = [(batch, rows, heads, size), (batch, columns, kv_heads, size), (batch, columns, kv_heads, size)]
    return [rand(*shape) for shape in shapes]


LENGTHS = {"prefill": (7, 7), "decode": (1, 9), "chunk": (3, 9), "one": (1, 1)}


@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("causal", [True, False])
def test_dense_with_one_launch(gpu: Gpu, case: str, causal: bool) -> None:
    q, k, v = qkv(*LENGTHS[case])
    out, (call,) = gpu.takes("attention", q, k, v, is_causal=causal)
    assert call.name == "mha_fwd"
    assert out.dtype == BF16
    assert out.is_contiguous()
    formulas.close(out, formulas.attention(q, k, v, causal=causal), ULPS)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (6, 3)])
def test_grouped_heads_are_native(primary: Gpu, heads: int, kv_heads: int) -> None:
    q, k, v = qkv(5, 5, heads=heads, kv_heads=kv_heads)
    out, (call,) = primary.takes("attention", q, k, v)
    assert call["k"].shape[2] == kv_heads
    formulas.close(out, formulas.attention(q, k, v), ULPS)


@pytest.mark.parametrize("size", [8, 64, 80, 96, 128, 256])
def test_head_sizes(gpu: Gpu, size: int) -> None:
    q, k, v = qkv(3, 6, size)
    out, _ = gpu.takes("attention", q, k, v)
    assert out.shape[-1] == size
    formulas.close(out, formulas.attention(q, k, v), ULPS)


@pytest.mark.parametrize("size", [20, 59, 264])
def test_other_head_sizes_are_declined(primary: Gpu, size: int) -> None:
    q, k, v = qkv(3, 3, size)
    out, reason = primary.declines("attention", q, k, v)
    assert str(size) in reason
    formulas.close(out, formulas.attention(q, k, v), ULPS)


@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_scaling(primary: Gpu, scale: float) -> None:
    q, k, v = qkv(4, 6)
    out, _ = primary.takes("attention", q, k, v, scaling=scale)
    formulas.close(out, formulas.attention(q, k, v, scale), ULPS)


def test_float16(primary: Gpu) -> None:
    q, k, v = (t.half() for t in qkv(4, 6))
    out, _ = primary.takes("attention", q, k, v)
    formulas.close(out, formulas.attention(q, k, v), ULPS)


def test_long_prefill_with_head_dim_128_takes_the_asm_kernel(primary: Gpu) -> None:
    q, k, v = qkv(130, 132, 128, heads=2, kv_heads=1, batch=1)
    out, (call,) = primary.takes("attention", q, k, v)
    assert call.name == "fmha_v3_fwd"
    formulas.close(out, formulas.attention(q, k, v), ULPS)


def test_transposed_views_are_not_copied(primary: Gpu) -> None:
    """transformers hands [B,H,S,D]; its transpose has a dense last dim and needs no copy."""
    q, k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in qkv(5, 7))
    out, (call,) = primary.takes("attention", q, k, v)
    assert call["q"].stride == q.stride()
    formulas.close(out, formulas.attention(q, k, v), ULPS)


def test_inputs_whose_last_dimension_is_strided_are_declined(primary: Gpu) -> None:
    q, k, v = (t.transpose(1, 3).contiguous().transpose(1, 3) for t in qkv(5, 7))
    out, reason = primary.declines("attention", q, k, v)
    assert "dense" in reason
    formulas.close(out, formulas.attention(q, k, v), ULPS)


def test_slices_of_one_packed_projection(primary: Gpu) -> None:
    packed = rand(2, 5, 8, 16)
    q, k, v = packed[:, :, :4], packed[:, :, 4:6], packed[:, :, 6:]
    out, _ = primary.takes("attention", q, k, v)
    formulas.close(out, formulas.attention(q, k, v), ULPS)


@pytest.mark.parametrize("case", ["prefill", "decode", "chunk"])
@pytest.mark.parametrize("window", [1, 4, 9, 50])
def test_sliding_windows(gpu: Gpu, case: str, window: int) -> None:
    q, k, v = qkv(*LENGTHS[case])
    out, _ = gpu.takes("attention", q, k, v, sliding_window=window)
    formulas.close(out, formulas.attention(q, k, v, window=window), ULPS)


@pytest.mark.parametrize("window", [1, 64])
def test_window_of_a_long_prefill_with_head_dim_128(primary: Gpu, window: int) -> None:
    q, k, v = qkv(130, 130, 128, heads=2, kv_heads=1, batch=1)
    out = primary.right("attention", q, k, v, sliding_window=window)
    formulas.close(out, formulas.attention(q, k, v, window=window), ULPS)


@pytest.mark.parametrize("case", ["prefill", "decode", "chunk"])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("size", [16, 128])
def test_soft_cap_goes_through_varlen(gpu: Gpu, case: str, window: int | None, size: int) -> None:
    q, k, v = qkv(*LENGTHS[case], size)
    out, (call,) = gpu.takes("attention", q, k, v, softcap=2.0, sliding_window=window)
    assert call.name == "mha_varlen_fwd"
    formulas.close(out, formulas.attention(q, k, v, soft_cap=2.0, window=window), ULPS)


@pytest.mark.parametrize("case", ["prefill", "decode", "chunk"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_sinks_are_honoured_where_they_exist(gpu: Gpu, case: str, dtype: torch.dtype) -> None:
    q, k, v = qkv(*LENGTHS[case])
    sinks = torch.randn(4).to(dtype)
    expected = formulas.attention(q, k, v, sinks=sinks)
    if gpu.has_sinks:
        out, (call,) = gpu.takes("attention", q, k, v, sinks=sinks)
        assert call["sink_ptr"].dtype == torch.float32
    else:
        out, reason = gpu.declines("attention", q, k, v, sinks=sinks)
        assert "sink" in reason
    formulas.close(out, expected, ULPS)


@pytest.mark.parametrize("rows", [64, 130])
def test_sinks_are_never_dropped_by_the_asm_kernel(primary: Gpu, rows: int) -> None:
    q, k, v = qkv(rows, rows, 128, heads=2, kv_heads=1, batch=1)
    sinks = torch.randn(2)
    out = primary.right("attention", q, k, v, sinks=sinks)
    formulas.close(out, formulas.attention(q, k, v, sinks=sinks), ULPS)


@pytest.mark.parametrize("window", [1, 40, 200])
def test_sinks_with_windows_that_aiter_takes_for_none(primary: Gpu, window: int) -> None:
    """A window of 1, or one longer than the keys, counts as no window: the ASM kernel without sinks would be chosen."""
    q, k, v = qkv(130, 130, 128, heads=2, kv_heads=1, batch=1)
    sinks = torch.randn(2)
    out = primary.right("attention", q, k, v, sinks=sinks, sliding_window=window)
    formulas.close(out, formulas.attention(q, k, v, sinks=sinks, window=window), ULPS)


def test_gradients_of_sinks_are_not_lost(primary: Gpu) -> None:
    q, k, v = qkv(3, 6)
    sinks = torch.randn(4).requires_grad_()
    with torch.enable_grad():
        out = primary.right("attention", q, k, v, sinks=sinks)
        assert out.requires_grad
        out.float().pow(2).sum().backward()
    assert sinks.grad is not None


# --- padding ---------------------------------------------------------------------------------------------------------

PADDINGS = {
    "left": torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]).bool(),
    "right": torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]).bool(),
}


def full_mask(keep: Tensor, rows: int, window: int | None = None) -> Tensor:
    """[B,1,rows,columns] as transformers builds it: causal to the bottom right, and the padding."""
    columns = keep.shape[1]
    row, column = torch.arange(rows)[:, None] + columns - rows, torch.arange(columns)[None]
    seen = column <= row if window is None else (column <= row) & (column > row - window)
    return seen[None, None] & keep[:, None, None, :]


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=BF16).masked_fill(~mask, torch.finfo(BF16).min)


def compare_kept_rows(out: Tensor, q: Tensor, k: Tensor, v: Tensor, keep: Tensor, window: int | None = None) -> None:
    """Query rows that are padding themselves may hold anything finite."""
    assert bool(torch.isfinite(out).all())
    expected = formulas.attention(q, k, v, keep=keep, window=window)
    rows = keep[:, keep.shape[1] - q.shape[1] :]
    formulas.close(out[rows], expected[rows], ULPS)


@pytest.mark.parametrize("side", PADDINGS)
@pytest.mark.parametrize("form", ["full", "additive"])
@pytest.mark.parametrize("size", [16, 128])
def test_padded_prefill_goes_through_varlen(gpu: Gpu, side: str, form: str, size: int) -> None:
    keep = PADDINGS[side]
    q, k, v = qkv(7, 7, size)
    mask = additive(full_mask(keep, 7)) if form == "additive" else full_mask(keep, 7)
    out, (call,) = gpu.takes("attention", q, k, v, attention_mask=mask, is_causal=False)
    assert call.name in ("mha_varlen_fwd", "fmha_v3_varlen_fwd")
    assert call["cu_seqlens_q"].dtype == torch.int32
    assert out.is_contiguous()
    compare_kept_rows(out, q, k, v, keep)


@pytest.mark.parametrize("side", PADDINGS)
@pytest.mark.parametrize("form", ["keys", "full"])
@pytest.mark.parametrize("window", [None, 3])
def test_mask_and_causality_together_are_right(primary: Gpu, side: str, form: str, window: int | None) -> None:
    keep = PADDINGS[side]
    q, k, v = qkv(7, 7)
    mask = keep[:, None, None, :] if form == "keys" else full_mask(keep, 7)
    out = primary.right("attention", q, k, v, attention_mask=mask, sliding_window=window)
    compare_kept_rows(out, q, k, v, keep, window)


@pytest.mark.parametrize("form", ["full", "additive"])
def test_left_padded_chunk(gpu: Gpu, form: str) -> None:
    keep = PADDINGS["left"]
    q, k, v = qkv(3, 7)
    mask = additive(full_mask(keep, 3)) if form == "additive" else full_mask(keep, 3)
    out, (call,) = gpu.takes("attention", q, k, v, attention_mask=mask, is_causal=False)
    assert call.name == "mha_varlen_fwd"
    compare_kept_rows(out, q, k, v, keep)


@pytest.mark.parametrize("form", ["full", "additive"])
def test_a_masked_decode_is_left_to_sdpa_without_a_look_at_the_mask(
    primary: Gpu, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths on the host would be a wait at every token, and the packed form a copy of all keys; no strict error."""
    monkeypatch.setattr(masks, "plan_for", None)
    keep = PADDINGS["left"]
    q, k, v = qkv(1, 7)
    mask = additive(full_mask(keep, 1)) if form == "additive" else full_mask(keep, 1)
    with amd_ops.override(strict=1), warnings.catch_warnings():
        warnings.simplefilter("error")
        amd_ops.attention(q, k, v, attention_mask=mask, is_causal=False)
    out, reason = primary.declines("attention", q, k, v, strict_error=False, attention_mask=mask, is_causal=False)
    assert reason == MASKED_DECODE
    compare_kept_rows(out, q, k, v, keep)


def test_padding_with_a_window(primary: Gpu) -> None:
    keep = PADDINGS["left"]
    q, k, v = qkv(7, 7)
    mask = full_mask(keep, 7, window=3)
    out, _ = primary.takes("attention", q, k, v, attention_mask=mask, is_causal=False)
    compare_kept_rows(out, q, k, v, keep, window=3)


def test_a_mask_that_hides_nothing_but_the_future(primary: Gpu) -> None:
    keep = torch.ones(2, 7, dtype=torch.bool)
    q, k, v = qkv(7, 7)
    out, _ = primary.takes("attention", q, k, v, attention_mask=full_mask(keep, 7), is_causal=False)
    compare_kept_rows(out, q, k, v, keep)


def test_static_cache_decode_with_unused_slots(primary: Gpu) -> None:
    """The cache is longer than what is filled: the tail of the keys is masked for every row."""
    q, k, v = qkv(1, 9)
    keep = torch.arange(9)[None] < 6
    mask = keep[:, None, None, :].expand(2, 1, 1, 9)
    out = primary.right("attention", q, k, v, attention_mask=mask, is_causal=False)
    formulas.close(out, formulas.attention(q, k[:, :6], v[:, :6]), ULPS)


def _odd_masks() -> dict[str, Tensor]:
    causal = torch.ones(7, 7).tril().bool()
    packed = causal & torch.block_diag(torch.ones(3, 3), torch.ones(4, 4)).bool()
    prefix = causal.clone()
    prefix[:3, :3] = True
    hole = causal.clone()
    hole[5:, 2] = False
    per_head = torch.stack([causal, packed, prefix, hole])
    bias = torch.zeros(7, 7, dtype=BF16).masked_fill(~causal, torch.finfo(BF16).min)
    bias[6, 2] = -1.5
    return {"packed": packed, "prefix": prefix, "hole": hole, "per_head": per_head, "bias": bias}


@pytest.mark.parametrize("name", list(_odd_masks()))
def test_other_masks_are_right_whatever_runs(primary: Gpu, name: str) -> None:
    """What no kernel argument can express must not reach a kernel that ignores it."""
    mask = _odd_masks()[name]
    q, k, v = qkv(7, 7)
    full = mask[None] if mask.dim() == 3 else mask[None, None]
    out = primary.right("attention", q, k, v, attention_mask=full, is_causal=False)
    formulas.close(out, _masked(q, k, v, full), ULPS)


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """fp64 attention under any mask."""
    key, value = (t.double().repeat_interleave(q.shape[2] // t.shape[2], 2) for t in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q.double(), key) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.double()
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), value)


@pytest.mark.parametrize("inference", [False, True])
def test_a_mask_that_is_overwritten_is_read_again(one: Gpu, inference: bool) -> None:
    """A static-shaped loop reuses one mask tensor: what was learnt about its old content must not be used."""
    with torch.inference_mode(inference):
        q, k, v = qkv(7, 7)
        mask = full_mask(PADDINGS["left"], 7)
        one.takes("attention", q, k, v, attention_mask=mask, is_causal=False)
        mask.copy_(full_mask(PADDINGS["right"], 7))
        out, _ = one.takes("attention", q, k, v, attention_mask=mask, is_causal=False)
        compare_kept_rows(out, q, k, v, PADDINGS["right"])


# --- declined --------------------------------------------------------------------------------------------------------


def test_float32_is_declined(primary: Gpu) -> None:
    q, k, v = (t.float() for t in qkv(3, 6))
    out, reason = primary.declines("attention", q, k, v)
    assert "float32" in reason
    formulas.close(out, formulas.attention(q, k, v), 64.0)


def test_dropout_is_declined(one: Gpu) -> None:
    q, k, v = qkv(3, 6)
    _, reason = one.declines("attention", q, k, v, dropout=0.5)
    assert "dropout" in reason


def test_kv_heads_that_do_not_divide_are_an_error(one: Gpu) -> None:
    q, k, v = qkv(3, 3, heads=4, kv_heads=3)
    with pytest.raises(amd_ops.ArgumentError, match="heads"):
        amd_ops.attention(q, k, v)
    assert one.double.calls == []


def test_mixed_dtypes_are_an_error(one: Gpu) -> None:
    q, k, v = qkv(3, 3)
    with pytest.raises(amd_ops.ArgumentError, match=r"key|float"):
        amd_ops.attention(q, k.float(), v)
    assert one.double.kernels() == []


def test_rows_without_any_key_are_finite(primary: Gpu) -> None:
    """More queries than keys: the first rows see nothing and must be 0, as in aiter."""
    q, k, v = qkv(9, 4)
    out = primary.right("attention", q, k, v)
    formulas.close(out, formulas.attention(q, k, v), ULPS)


@pytest.mark.parametrize("case", ["prefill", "chunk", "decode"])
@pytest.mark.parametrize("window", [1, 3, 9, 50])
def test_a_window_without_causality_means_the_same_in_every_tier(primary: Gpu, case: str, window: int) -> None:
    q, k, v = qkv(*LENGTHS[case])
    with amd_ops.override(tiers="eager"):
        expected = amd_ops.attention(q.float(), k.float(), v.float(), is_causal=False, sliding_window=window)
    with amd_ops.override(tiers="torch,eager"):
        in_torch = amd_ops.attention(q, k, v, is_causal=False, sliding_window=window)
    out, _ = primary.takes("attention", q, k, v, is_causal=False, sliding_window=window)
    formulas.close(out, expected.double(), ULPS)
    formulas.close(in_torch, expected.double(), 2 * ULPS)
