"""Rotary embedding on every CPU tier, and bit for bit against the stock functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import amd_ops

from .reference import close, rope
from .test_norm import DTYPES


def tables(batch: int, length: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = torch.rand(batch, length, width // 2) * 6.0
    angles = torch.cat((angles, angles), -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def heads(batch: int, count: int, length: int, size: int, dim: int, dtype: torch.dtype) -> Tensor:
    """[B, H, S, D] as a view of [B, S, H, D] (as models make it), or [B, S, H, D] itself."""
    x = torch.randn(batch, length, count, size).to(dtype)
    return x.transpose(1, 2) if dim == 1 else x


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 5),
    groups=st.integers(1, 3),
    half=st.integers(1, 8),
    rest=st.integers(0, 5),
    own_rows=st.booleans(),
    dim=st.sampled_from((1, 2)),
    dtype=st.sampled_from(DTYPES),
    tier=st.sampled_from(("torch", "eager")),
)
def test_every_tier_agrees_with_fp64(
    batch: int, length: int, groups: int, half: int, rest: int, own_rows: bool, dim: int, dtype: torch.dtype, tier: str
) -> None:
    q = heads(batch, 2 * groups, length, 2 * half + rest, dim, dtype)
    k = heads(batch, 2, length, 2 * half + rest, dim, dtype)
    cos, sin = tables(batch if own_rows else 1, length, 2 * half, dtype)
    with amd_ops.override(tiers=tier):
        outs = amd_ops.apply_rope(q, k, cos, sin, dim)
    for out, x in zip(outs, (q, k), strict=True):
        assert out.dtype is dtype
        close(out, rope(x, cos, sin, dim), 2.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2])
def test_torch_tier_is_bit_equal_to_the_stock_functions(dtype: torch.dtype, dim: int) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    phi3 = pytest.importorskip("transformers.models.phi3.modeling_phi3")
    q, k = heads(2, 4, 5, 16, dim, dtype), heads(2, 2, 5, 16, dim, dtype)
    for module, width in ((llama, 16), (phi3, 16), (phi3, 12)):
        cos, sin = tables(2, 5, width, dtype)
        want = module.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=dim)
        got = amd_ops.apply_rope(q, k, cos, sin, dim)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)
            assert module is phi3 or a.stride() == b.stride()


class Launches(TorchDispatchMode):
    """Counts the kernels: everything but views."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_position_takes_six_launches_and_stays_bit_equal(dtype: torch.dtype, dim: int, batch: int) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    q, k = heads(batch, 4, 1, 16, dim, dtype), heads(batch, 2, 1, 16, dim, dtype)
    cos, sin = tables(1, 1, 16, dtype)
    with amd_ops.override(tiers="torch"):
        amd_ops.apply_rope(q, k, cos, sin, dim)
        with Launches() as launches:
            got = amd_ops.apply_rope(q, k, cos, sin, dim)
        with Launches() as more:
            amd_ops.apply_rope(q, k.double(), cos, sin, dim)
    for a, b in zip(got, llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=dim), strict=True):
        assert torch.equal(a, b)
    assert launches.count == 6
    assert more.count >= 10  # two dtypes cannot share one tensor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "length"), [(1, 1), (1, 5), (2, 5)])
def test_tables_of_halves_are_bit_equal_to_the_stock_function(dtype: torch.dtype, dim: int, length: int) -> None:
    stock: Any = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    q, k = (heads(2, count, length, 16, dim, dtype).requires_grad_() for count in (4, 2))
    cos, sin = (table[..., :8] for table in tables(1, length, 16, dtype))
    with amd_ops.override(tiers="torch,eager"):
        assert amd_ops.takes_rope(stock._apply_rotary_emb, q, k, cos, sin, dim, halves=True)
        got = amd_ops.apply_rope(q, k, cos, sin, dim, halves=True)
    want = stock.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=dim)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(
        *(torch.autograd.grad([*out], (q, k), [*map(torch.ones_like, out)]) for out in (got, want)), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_whole_tables_are_not_taken_for_tables_of_halves() -> None:
    stock: Any = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    q, k = (heads(1, count, 5, 16, 1, torch.float32) for count in (4, 2))
    cos, sin = tables(1, 5, 16, torch.float32)
    assert not amd_ops.takes_rope(stock._apply_rotary_emb, q, k, cos, sin, 1, halves=True)
    assert not amd_ops.takes_rope(lambda x, cos, sin: x, q, k, cos[..., :8], sin[..., :8], 1, halves=True)


def test_inputs_are_left_alone_and_gradients_flow() -> None:
    q, k = heads(1, 2, 3, 8, 1, torch.float32).requires_grad_(), heads(1, 1, 3, 8, 1, torch.float32)
    cos, sin = tables(1, 3, 8, torch.float32)
    kept = q.detach().clone()
    amd_ops.apply_rope(q, k, cos, sin)[0].sum().backward()
    assert torch.equal(q.detach(), kept)
    assert q.grad is not None


GOOD = {
    "q": torch.randn(2, 4, 5, 8),
    "k": torch.randn(2, 2, 5, 8),
    "cos": torch.ones(2, 5, 8),
    "sin": torch.ones(2, 5, 8),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.randn(4, 5, 8)}, "q is .*expected a tensor of 4 dimensions"),
        ({"cos": torch.ones(5, 8)}, "cos is .*expected a tensor of 3 dimensions"),
        ({"cos": torch.ones(2, 4, 8), "sin": torch.ones(2, 4, 8)}, "cos is .*expected \\[2 or 1, 5, R\\]"),
        ({"sin": torch.ones(2, 5, 6)}, "cos and sin is"),
        ({"cos": torch.ones(2, 5, 10), "sin": torch.ones(2, 5, 10)}, "R even and <= 8"),
        ({"k": torch.randn(2, 2, 5, 6)}, "k is"),
        ({"cos": torch.ones(3, 5, 8), "sin": torch.ones(3, 5, 8)}, "cos is"),
        ({"unsqueeze_dim": 3}, "unsqueeze_dim is 3"),
    ],
)
@pytest.mark.parametrize("tier", ["torch", "eager"])
def test_bad_arguments_are_named(change: dict, message: str, tier: str) -> None:
    with amd_ops.override(tiers=tier), pytest.raises(amd_ops.ArgumentError, match=message):
        amd_ops.apply_rope(**{**GOOD, **change})
