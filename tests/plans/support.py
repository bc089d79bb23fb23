"""Greedy-like decodes through an overlaid model, and how many of their steps ran a plan."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, StaticCache

import amd_ops
from amd_ops import dispatch

ON: dict[str, object] = dict.fromkeys(
    ("use_aiter_attention", "use_aiter_gemm", "use_optimized_ops", "use_fused_projections"), 1
)
OFF: dict[str, object] = dict.fromkeys(ON, 0)
COUNTS_ITSELF = transformers.__version__.startswith("5")
BEFORE_LAYERS = transformers.__version__.startswith("4.53")
"""Whether caches are lists of tensors, whose making asks for other arguments."""
PROMPT = 6


def decode(model: Any, kind: str = "dynamic", steps: int = 3, cache: Any = None, batch: int = 1) -> list[Tensor]:
    """Logits of a prefill and of ``steps`` single tokens on a new cache of this kind (or on ``cache``)."""
    if cache is None:
        cache = new_cache(kind, model, batch)
    ids = torch.arange(3, 3 + batch * PROMPT).view(batch, PROMPT)
    out = [step(model, ids, cache, 0)]
    for index in range(steps):
        out.append(step(model, ids[:, :1] + index, cache, PROMPT + index))
    return out


def new_cache(kind: str, model: Any, batch: int) -> Any:
    """An empty cache of this kind."""
    config = getattr(model, "config", None)
    if kind == "dynamic":
        return DynamicCache() if BEFORE_LAYERS else DynamicCache(config=config)
    more = {"max_batch_size": batch, "dtype": model.dtype} if BEFORE_LAYERS else {}
    return StaticCache(config=config, max_cache_len=16, **more)


def step(model: Any, ids: Tensor, cache: Any, at: int, **more: Any) -> Tensor:
    """One forward at position ``at``."""
    positions = torch.arange(at, at + ids.shape[1])
    given: dict[str, Any] = {} if COUNTS_ITSELF else {"cache_position": positions}
    result = model(ids, past_key_values=cache, position_ids=positions[None], use_cache=True, **given, **more)
    logits: Tensor = result.logits
    return logits


def site() -> dispatch.Site:
    """The counters of plans."""
    found = dispatch.ops["decode_plan"]
    assert isinstance(found, dispatch.Site)
    return found


def ran() -> int:
    """Steps that ran a plan since the counters were reset."""
    return site().fast.calls


def assert_close(got: list[Tensor], want: list[Tensor], tolerance: float = 2e-5) -> None:
    """Every logit within ``tolerance`` of the largest one."""
    for ours, theirs in zip(got, want, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


def planned_and_stock(model: Any, kind: str = "dynamic", **how: Any) -> int:
    """Compare a decode with plans with the stock statements of the same model; return how many steps were planned."""
    with amd_ops.override(**ON, tiers="torch,eager"):
        amd_ops.reset_counters()
        got = decode(model, kind, **how)
        count = ran()
    with amd_ops.override(**OFF):
        want = decode(model, kind, **how)
    assert_close(got, want)
    return count
