"""Latent attention's q and k in one launch, against the rotating functions of the installed transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import amd_ops
from amd_ops.backends.triton import latent
from amd_ops.ops.latent import stock_latent

from .support import DTYPES, few, ran


def parts(
    batch: int, heads: int, length: int, rest: int, width: int, dtype: torch.dtype, tables: int = 1
) -> list[Tensor]:
    """Views of what the projections give, as the model makes them."""
    q = torch.randn(batch, length, heads, rest + width).to(dtype).transpose(1, 2)
    k = torch.randn(batch, length, heads, rest + 16).to(dtype).transpose(1, 2)
    turned = torch.randn(batch, length, 32 + width).to(dtype)[..., 32:].view(batch, 1, length, width)
    angles = torch.randn(tables, length, width // 2).repeat(1, 1, 2)
    return [q[..., :rest], q[..., rest:], k[..., :rest], turned, angles.cos().to(dtype), angles.sin().to(dtype)]


@few(16)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 5),
    length=st.integers(1, 3),
    rest=st.sampled_from((8, 16, 24, 40)),
    width=st.sampled_from((8, 16, 24)),
    pairs=st.booleans(),
    shared=st.booleans(),
    alone=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_every_bit_is_stocks(
    batch: int,
    heads: int,
    length: int,
    rest: int,
    width: int,
    pairs: bool,
    shared: bool,
    alone: bool,
    dtype: torch.dtype,
) -> None:
    given: list[Any] = parts(batch, heads, length, rest, width, dtype, 1 if shared else batch)
    if alone:
        given[2] = None
    got, want = latent.launch_latent(*given, pairs, wave=32), stock_latent(*given, pairs)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.is_contiguous()
        if dtype is torch.float32:  # a product and its sum are one fma on a GPU; the interpreter has none
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_what_deepseek_v3_computes(asked: None, pairs: bool, dtype: torch.dtype) -> None:
    module = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    q_pass, q_rot, k_pass, k_rot, cos, sin = parts(2, 3, 2, 16, 8, dtype)
    functions = module.apply_rotary_pos_emb, module.apply_rotary_pos_emb_interleave
    got = amd_ops.latent_rope(q_pass, q_rot, k_pass, k_rot, cos, sin, pairs, *functions)
    assert got is not None
    assert ran("join_rope") == 1
    q, k = functions[pairs](q_rot, k_rot, cos, sin)
    want = torch.cat((q_pass, q), dim=-1), torch.cat((k_pass, k.expand(*k_pass.shape[:-1], -1)), dim=-1)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 if dtype is torch.float32 else 0)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_cache_of_latents_takes_and_the_key_that_comes_out(asked: None, pairs: bool, dtype: torch.dtype) -> None:
    module = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    q_pass, q_rot, k_pass, k_rot, cos, sin = parts(2, 3, 2, 16, 8, dtype)
    functions = module.apply_rotary_pos_emb, module.apply_rotary_pos_emb_interleave
    got = amd_ops.latent_rope(q_pass, q_rot, None, k_rot, cos, sin, pairs, *functions)
    assert got is not None
    assert ran("join_rope") == 1
    key = amd_ops.latent_key(k_pass, got[1], 8)
    whole = amd_ops.latent_rope(q_pass, q_rot, k_pass, k_rot, cos, sin, pairs, *functions)
    assert key is not None
    assert whole is not None
    q, k = functions[pairs](q_rot, k_rot, cos, sin)
    for ours, theirs in ((got[0], torch.cat((q_pass, q), dim=-1)), (got[1], k), (got[0], whole[0]), (key, whole[1])):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 if dtype is torch.float32 else 0)


def test_what_it_does_not_take_is_declined_with_the_reason(asked: None) -> None:
    good = parts(1, 2, 2, 8, 8, torch.float32)
    cases: list[tuple[int, Any, str]] = [
        (1, good[1].double(), "not of one dtype"),
        (3, good[3].expand(-1, 2, -1, -1), "the key's part"),
        (0, good[0].expand(1, 2, 2, 8).mT.contiguous().mT, "the last one is not dense"),
    ]
    for index, spoilt, reason in cases:
        with pytest.raises(amd_ops.DeclinedError, match=reason):
            amd_ops.join_rope(*good[:index], spoilt, *good[index + 1 :])


def test_gradients_and_nothing_at_all_are_left_to_torch(asked: None) -> None:
    with torch.enable_grad():
        given = [one.detach().requires_grad_() for one in parts(1, 2, 2, 8, 8, torch.float32)]
        amd_ops.join_rope(*given)[0].sum().backward()
    assert amd_ops.join_rope(*parts(1, 2, 0, 8, 8, torch.float32))[0].shape == (1, 2, 0, 16)
    assert ran("join_rope") == 0
