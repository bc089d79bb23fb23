"""The fused public ops: head norms in front of the rotation, a static cache behind it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import amd_ops
from amd_ops.forward.qk_rope import (
    eager_qk_norm_rope,
    eager_rope_into_cache,
    qk_norm_rope,
    rope_into_cache,
    torch_qk_norm_rope,
    torch_rope_into_cache,
)
from tests.ops.reference import close, rms_norm, rope
from tests.ops.test_rope import heads, tables

from .support import DTYPES, ran

FORMS = ("llama", "gemma", "fp32_weight", "t5")
NEAR = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=NEAR[want.dtype], atol=NEAR[want.dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_qk_norm_rope(asked: None, dtype: torch.dtype, form: str) -> None:
    length, size, width = (1, 16, 16) if form == "llama" else (3, 24, 16)
    q, k = heads(2, 4, length, size, 1, dtype), heads(2, 2, length, size, 1, dtype)
    weights = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    cos, sin = tables(2, length, width, dtype)
    got = qk_norm_rope(q, k, *weights, 1e-6, cos, sin, form=form)
    assert ran("qk_norm_rope") == 1
    for reference in (torch_qk_norm_rope, eager_qk_norm_rope):
        for out, want in zip(got, reference(q, k, *weights, 1e-6, form, cos, sin), strict=True):
            same(out, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["", *FORMS])
def test_rope_into_cache(asked: None, dtype: torch.dtype, form: str) -> None:
    length = 3 if form in ("", "gemma") else 1
    q, k, v = (heads(2, count, length, 16, 1, dtype) for count in (4, 2, 2))
    weights = (torch.randn(16).to(dtype), torch.randn(16).to(dtype)) if form else (None, None)
    cos, sin = tables(1, length, 16, dtype)
    keys, values = torch.randn(2, 2, 9, 16).to(dtype), torch.randn(2, 2, 9, 16).to(dtype)
    position = torch.arange(length) + 3
    for reference in (torch_rope_into_cache, eager_rope_into_cache):
        mine, theirs = (keys.clone(), values.clone()), (keys.clone(), values.clone())
        got = rope_into_cache(
            q, k, v, cos, sin, *mine, position, q_weight=weights[0], k_weight=weights[1], eps=1e-6, form=form or "llama"
        )
        want = reference(q, k, v, cos, sin, *theirs, position, *weights, 1e-6, form or "llama")
        same(got, want)
        same(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])
    assert ran("rope_into_cache") == 2


EDGES = [(1, 1, 1, 2), (1, 1, 3, 80), (2, 3, 5, 24), (1, 7, 2, 96), (2, 0, 2, 8), (0, 2, 2, 8)]
"""(batch, length, heads, size): one token of one head, sizes that are no power of two, and nothing at all."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "packed"), [*((s, False) for s in EDGES), *((s, True) for s in EDGES if s[3] % 8 == 0)]
)
def test_edge_shapes_against_fp64(
    asked: None, shape: tuple[int, int, int, int], dtype: torch.dtype, packed: bool
) -> None:
    batch, length, count, size = shape
    q, k, v = (heads(batch, n, length, size, 1, dtype) for n in (count, 1, 1))
    if packed:  # slices of one projection's output, as fused q/k/v makes them
        both = torch.randn(batch, length, count + 2, size).to(dtype)
        q, k, v = (t.transpose(1, 2) for t in both.split((count, 1, 1), 2))
    weights = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    cos, sin = tables(1, length, size - size % 4 or 2, dtype)
    want = [rope(rms_norm(x, w, 1e-6, "gemma"), cos, sin, 1) for x, w in zip((q, k), weights, strict=True)]
    for out, reference in zip(qk_norm_rope(q, k, *weights, 1e-6, cos, sin, form="gemma"), want, strict=True):
        close(out, reference, 4.0)
    keys, values = torch.zeros(batch, 1, 9, size, dtype=dtype), torch.zeros(batch, 1, 9, size, dtype=dtype)
    close(rope_into_cache(q, k, v, cos, sin, keys, values, torch.arange(length) + 1), rope(q, cos, sin, 1), 2.0)
    close(keys[:, :, 1 : length + 1], rope(k, cos, sin, 1), 2.0)
    assert torch.equal(values[:, :, 1 : length + 1], v)
    assert not keys[:, :, length + 1 :].any()
    assert ran("qk_norm_rope") == ran("rope_into_cache") == (1 if q.numel() else 0)


def test_a_probe_does_not_write_to_the_callers_cache(asked: None) -> None:
    q, k, v = (heads(1, 2, 1, 8, 1, torch.float32) for _ in range(3))
    cos, sin = tables(1, 1, 8, torch.float32)
    keys, values = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8)
    rope_into_cache(q, k, v, cos, sin, keys, values, torch.tensor([2]))
    assert not keys[:, :, [0, 1, 3]].any()
    assert torch.equal(values[:, :, 2:3], v)


def test_training_takes_the_kernels_that_have_a_backward(asked: None) -> None:
    grads = []
    for tiers in ("triton", "torch"):
        torch.manual_seed(1)
        made = [heads(1, c, 3, 8, 1, torch.float32).requires_grad_() for c in (4, 2)]
        made += [torch.randn(8, requires_grad=True) for _ in range(2)]
        with amd_ops.override(tiers=tiers), torch.enable_grad():
            turned = qk_norm_rope(*made, 1e-6, *tables(1, 3, 8, torch.float32))
            sum(t.pow(3).sum() for t in turned).backward()
        grads.append([t.grad for t in made])
    assert ran("qk_norm_rope") == 1
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"position": torch.tensor([1.0])}, "positions are not a list of integers"),
        ({"position": torch.tensor([0, 1, 2, 3])[::2][:1].expand(1).as_strided((1,), (2,))}, "not one dense list"),
        ({"keys": torch.zeros(1, 2, 8, 4).transpose(2, 3)}, "cache is not dense"),
        ({"q": torch.randn(1, 2, 1, 8, requires_grad=True)}, "no backward"),
    ],
)
def test_what_the_kernel_does_not_do_is_declined(asked: None, change: dict[str, Tensor], reason: str) -> None:
    args: dict[str, Tensor] = {"q": torch.randn(1, 2, 1, 8), "k": torch.randn(1, 2, 1, 8), "v": torch.randn(1, 2, 1, 8)}
    args["cos"], args["sin"] = tables(1, 1, 8, torch.float32)
    args |= {"keys": torch.zeros(1, 2, 4, 8), "values": torch.zeros(1, 2, 4, 8), "position": torch.tensor([1])}
    with torch.enable_grad(), pytest.raises(amd_ops.DeclinedError, match=reason):
        rope_into_cache(**{**args, **change})
