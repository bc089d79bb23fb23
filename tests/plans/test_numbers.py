"""Plans of every decoder shape, on every kind of cache, give stock's numbers; where none can be, the layers run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import amd_ops
from amd_ops.backends.aiter.attention import MASKED_DECODE
from tests.aiter.support import declined
from tests.doubles.aiter import fake_aiter
from tests.parity import twins
from tests.plans.support import BEFORE_LAYERS, OFF, ON, PROMPT, assert_close, decode, planned_and_stock, ran, site, step

PLANNED = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma", "mixtral", "qwen3_moe", "gemma2", "gemma3")


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("architecture", PLANNED)
@torch.no_grad()
def test_a_decode_is_planned_and_stocks(architecture: str, kind: str) -> None:
    pair = twins.new_pair(architecture, "float32")
    count = planned_and_stock(pair.overlay, kind)
    # gemma2's soft cap is not sdpa's; experts of 4.53 hand their router's logits on.
    unplanned = ("gemma2", "mixtral", "qwen3_moe") if BEFORE_LAYERS else ("gemma2",)
    wanted = 0 if architecture in unplanned else 3
    assert count == wanted, site().fast.declined


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_batches_and_bf16_on_the_tier_of_aiter(kind: str) -> None:
    model = twins.new_pair("llama", "bfloat16").overlay
    with torch.inference_mode(), fake_aiter("v0.1.20.post1", "gfx942", 304) as double:
        with amd_ops.override(**ON):
            decode(model, kind, batch=2)
            amd_ops.reset_counters()
            double.clear()
            got = decode(model, kind, batch=2)
            assert ran() == 3, site().fast.declined
            report = amd_ops.report()
            for op in ("rms_norm", "add_rms_norm", "linear", "silu_and_mul"):
                assert report.calls(op, "aiter") == report.calls(op), str(report)
            # A static cache comes with a mask, which SDPA takes as it is at one token: three steps of two layers.
            masked = 6 if kind == "static" else 0
            assert report.calls("attention", "aiter") == report.calls("attention") - masked, str(report)
            assert declined("attention") == ([MASKED_DECODE] if masked else [])
        with amd_ops.override(**OFF):
            want = decode(model, kind, batch=2)
    assert_close(got, want, 3e-2)


@pytest.mark.parametrize(("kind", "op"), [("dynamic", "apply_rope"), ("static", "rope_into_cache")])
def test_what_a_plan_computes_without_asking_again_is_counted_and_equal_to_the_bit(kind: str, op: str) -> None:
    model = twins.new_pair("llama", "bfloat16").overlay
    with torch.inference_mode(), amd_ops.override(**ON, tiers="torch,eager"):
        first = decode(model, kind)  # whose first planned step asks the ops
        amd_ops.reset_counters()
        again = decode(model, kind)
    layers = model.config.num_hidden_layers
    by_plan = amd_ops.report().calls(op, "torch") - (layers if kind == "dynamic" else 0)  # whose prompt asks it as well
    assert by_plan == 3 * layers, str(amd_ops.report())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first, again, strict=True))


def generated(model: Any, **how: Any) -> torch.Tensor:
    ids = torch.arange(3, 9)[None].repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    result: torch.Tensor = model.generate(
        ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0, **how
    )
    return result


@pytest.mark.parametrize(
    "how",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}, {"use_cache": False}],
    ids=str,
)
def test_generate_gives_the_same_tokens(how: dict[str, Any]) -> None:
    model = twins.new_pair("llama", "float32").overlay
    if "prompt_lookup_num_tokens" in how:
        ids = torch.arange(3, 9)[None].repeat(1, 2)
        with amd_ops.override(**ON, tiers="torch,eager"):
            got = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, **how)
        with amd_ops.override(**OFF):
            want = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, **how)
    else:
        with amd_ops.override(**ON, tiers="torch,eager"):
            amd_ops.reset_counters()
            got = generated(model, **how)
            assert (ran() > 0) is how.get("use_cache", True), site().fast.declined
        with amd_ops.override(**OFF):
            want = generated(model, **how)
    assert torch.equal(got, want)


class Half(DynamicCache):
    """Somebody's own cache: what comes in is halved."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        return super().update(key_states * 0.5, value_states, *args, **kwargs)


@torch.no_grad()
def test_a_cache_of_somebodys_own_is_asked() -> None:
    model = twins.new_pair("llama", "float32").overlay
    with amd_ops.override(**ON, tiers="torch,eager"):
        amd_ops.reset_counters()
        got = decode(model, cache=Half())
        assert ran() == 3, str(amd_ops.report())
    with amd_ops.override(**OFF):
        want = decode(model, cache=Half())
        plain = decode(model)
    assert_close(got, want)
    assert not torch.allclose(want[1], plain[1])


@pytest.mark.skipif(BEFORE_LAYERS, reason="a cache of this release has no layers")
@torch.no_grad()
def test_a_patched_update_of_a_layer_is_called() -> None:
    model = twins.new_pair("llama", "float32").overlay
    for kind in ("dynamic", "static"):
        seen = []
        with amd_ops.override(**ON, tiers="torch,eager"):
            cache = DynamicCache() if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=16)
            ids = torch.arange(3, 3 + PROMPT)[None]
            step(model, ids, cache, 0)
            own = cache.layers[1].update
            cache.layers[1].update = lambda *args, own=own, seen=seen, **words: seen.append(1) or own(*args, **words)
            step(model, ids[:, :1], cache, PROMPT)
        assert seen == [1]
