"""What a plan binds of tier triton computes what the checked call does, bit for bit, also where a cache has grown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import amd_ops
from amd_ops import dispatch

KINDS = [torch.float32, torch.bfloat16]


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def given(name: str, kind: torch.dtype) -> tuple[Any, ...]:
    x, weight = rand(2, 64).to(kind), rand(64).to(kind)
    q, k, table = rand(2, 4, 1, 16).to(kind), rand(2, 2, 1, 16).to(kind), rand(1, 1, 16).to(kind)
    keys, values = rand(2, 2, 32, 16).to(kind), rand(2, 2, 32, 16).to(kind)
    at = torch.tensor([5])
    cases: dict[str, tuple[Any, ...]] = {
        "rms_norm": (x, weight, 1e-6, "llama"),
        "add_rms_norm": (x, x.flip(0).contiguous(), weight, 1e-6, "gemma"),
        "silu_and_mul": (x,),
        "apply_rope": (q, k, table, table, 1),
        "qk_norm_rope": (q, k, weight[:16], weight[:16], 1e-6, "llama", table, table),
        "rope_into_cache": (q, k, k, table, table, keys, values, at, None, None, 0.0, "llama"),
        "rope_into_cache normed": (q, k, k, table, table, keys, values, at, weight[:16], weight[:16], 1e-6, "gemma"),
    }
    return cases[name]


NAMES = ["rms_norm", "add_rms_norm", "silu_and_mul", "apply_rope", "qk_norm_rope"]
NAMES += ["rope_into_cache", "rope_into_cache normed"]


def parts(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_bound_call_is_the_checked_call(name: str, kind: torch.dtype) -> None:
    op = dispatch.ops[name.partition(" ")[0]]
    assert isinstance(op, dispatch.Op)
    with amd_ops.override(use_optimized_ops=1, tiers="triton"), torch.no_grad():
        args, again = given(name, kind), given(name, kind)
        bound = op.bound(*args)
        fast = bound.run
        assert bound.tally is not None
        assert bound.tally.tier == "triton"
        for _ in range(2):
            for ours, theirs in zip(parts(fast(*args)), parts(op.call(*again)), strict=True):
                assert torch.equal(ours, theirs)
        for ours, theirs in zip(args, again, strict=True):
            if isinstance(ours, Tensor):
                assert torch.equal(ours, theirs)
        if name.startswith("rope_into_cache"):
            longer = [torch.cat([one, one], 2) if index in (5, 6) else one for index, one in enumerate(args)]
            copied = [one.clone() if isinstance(one, Tensor) else one for one in longer]
            assert torch.equal(fast(*longer), op.call(*copied))
            assert torch.equal(longer[5], copied[5])


def test_calls_that_differ_in_more_than_data_are_not_bound() -> None:
    op = dispatch.ops["rms_norm"]
    assert isinstance(op, dispatch.Op)
    with amd_ops.override(use_optimized_ops=1, tiers="triton"), torch.no_grad():
        strided = rand(4, 64)[::2]
        assert op.bound(strided, rand(64), 1e-6, "llama").tally is None
