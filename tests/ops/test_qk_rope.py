"""Head norms, rotation and the write into a static cache, against fp64 and beside transformers' own caches."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import amd_ops
from amd_ops import dispatch
from amd_ops.ops.norm import FORMS

from .reference import close, rms_norm, rope
from .test_norm import DTYPES
from .test_residual import Norm, hooked, reasons
from .test_rope import heads, tables


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(0, 3),
    length=st.integers(0, 5),
    half=st.integers(1, 8),
    rest=st.integers(0, 4),
    dtype=st.sampled_from(DTYPES),
    form=st.sampled_from(FORMS),
    tier=st.sampled_from(("torch", "eager")),
    normed=st.booleans(),
)
def test_every_tier_agrees_with_fp64(
    batch: int, length: int, half: int, rest: int, dtype: torch.dtype, form: str, tier: str, normed: bool
) -> None:
    size = 2 * half + rest
    q, k = heads(batch, 4, length, size, 1, dtype), heads(batch, 2, length, size, 1, dtype)
    v = heads(batch, 2, length, size, 1, dtype)
    q_weight, k_weight = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    cos, sin = tables(1, length, 2 * half, dtype)
    norms: dict[str, Any] = {"q_weight": q_weight, "k_weight": k_weight, "eps": 1e-6, "form": form} if normed else {}
    keys, values = (torch.randn(batch, 2, length + 3, size).to(dtype) for _ in range(2))
    before = keys.clone(), values.clone()
    position = torch.randperm(length + 3)[:length]
    with amd_ops.override(tiers=tier):
        both = amd_ops.qk_norm_rope(q, k, q_weight, k_weight, 1e-6, cos, sin, form=form)
        out = amd_ops.rope_into_cache(q, k, v, cos, sin, keys, values, position, **norms)
    want = [rope(rms_norm(x, w, 1e-6, form), cos, sin, 1) for x, w in ((q, q_weight), (k, k_weight))]
    for got, reference in zip(both, want, strict=True):
        assert got.dtype is dtype
        close(got, reference, 4.0)
    close(out, want[0] if normed else rope(q, cos, sin, 1), 4.0)
    close(keys[:, :, position], want[1] if normed else rope(k, cos, sin, 1), 4.0)
    assert torch.equal(values[:, :, position], v)
    others = [slot for slot in range(length + 3) if slot not in position.tolist()]
    for now, then in ((keys, before[0]), (values, before[1])):
        assert torch.equal(now[:, :, others], then[:, :, others])


def test_gradients_agree_with_norm_and_rope_one_after_the_other() -> None:
    cos, sin = tables(1, 3, 8, torch.float32)
    grads = []
    for fused in (True, False):
        torch.manual_seed(3)
        q, k, a, b = (torch.randn(shape).requires_grad_() for shape in ((2, 4, 3, 8), (2, 2, 3, 8), (8,), (8,)))
        if fused:
            outs = amd_ops.qk_norm_rope(q, k, a, b, 1e-6, cos, sin)
        else:
            # As stock's attention: the norm where the projection left the heads, then the turned view.
            normed = (amd_ops.rms_norm(x.transpose(1, 2), w, 1e-6).transpose(1, 2) for x, w in ((q, a), (k, b)))
            outs = amd_ops.apply_rope(*normed, cos, sin)
        (outs[0].square().sum() + outs[1].sum()).backward()
        grads.append([x.grad for x in (q, k, a, b)])
    for x, y in zip(*grads, strict=True):
        assert torch.equal(x, y)


Q, K, W = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8), torch.ones(8)
C = torch.ones(1, 3, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_weight": torch.ones(7)}, r"q_weight is \[7\].*expected \[8\]"),
        ({"k_weight": torch.ones(8, device="meta")}, "k_weight is on meta"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"form": "rms"}, "form is 'rms'"),
        ({"cos": torch.ones(1, 4, 8), "sin": torch.ones(1, 4, 8)}, "cos is"),
        ({"q": torch.randn(2, 3, 8)}, "q is .*4 dimensions"),
    ],
)
@pytest.mark.parametrize("tier", ["torch", "eager"])
def test_bad_arguments_are_named(change: dict[str, Any], message: str, tier: str) -> None:
    good = {"q": Q, "k": K, "q_weight": W, "k_weight": W, "eps": 1e-6, "cos": C, "sin": C}
    with amd_ops.override(tiers=tier), pytest.raises(amd_ops.ArgumentError, match=message):
        amd_ops.qk_norm_rope(**{**good, **change})


def test_the_answer_of_strict_mode_is_not_taken_for_a_wrong_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Tensor:
        raise amd_ops.DeclinedError("tier triton was asked for")

    monkeypatch.setattr(dispatch.ops["rope_into_cache"], "call", refuse)
    cos, sin = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    q, kv, cache = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8), torch.zeros(1, 2, 5, 8, dtype=torch.bfloat16)
    with pytest.raises(amd_ops.DeclinedError, match="asked for"):
        amd_ops.rope_into_cache(q, kv, kv, cos, sin, cache, cache, torch.arange(3))


def test_a_cache_that_does_not_fit_is_named() -> None:
    cache = torch.zeros(2, 2, 5, 8, dtype=torch.float64)
    with pytest.raises(amd_ops.ArgumentError, match="keys is"):
        amd_ops.rope_into_cache(Q, K, K, C, C, cache, cache.clone(), torch.arange(3))


# -- the plan


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = Norm(8), Norm(8)
        self.layer_idx = 0

    def forward(self, q: Tensor, k: Tensor, v: Tensor, cache: Any, position: Tensor, plan: Any) -> Any:
        """What the overlaid text makes of an attention's head norms, rotation and update."""
        q, k = (plan or self).q_norm(q), (plan or self).k_norm(k)
        q, k = plan(q, k, v, C, C) if plan else amd_ops.apply_rope(q, k, C, C)
        if cache is not None:
            k, v = (plan or cache).update(k, v, self.layer_idx, {"cache_position": position})
        return q, k, v


def transformers_with_cache_layers() -> Any:
    """transformers, where a cache consists of layers (from 4.54 on): in an older one nothing is written into."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers.DynamicCache(), "layers"):
        pytest.skip("the caches of this transformers have no layers")
    return transformers


def counts(cache: Any) -> bool:
    """Whether the cache's layers know where they write next (from transformers 5.10 on): no position is needed."""
    return hasattr(cache.layers[0], "cumulative_length")


def static_cache(**changes: Any) -> Any:
    transformers = transformers_with_cache_layers()
    config = transformers.LlamaConfig(
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_size=32
    )
    cache = transformers.StaticCache(config, max_cache_len=6)
    if changes.get("allocated", True):  # from the keys alone, from transformers 5 on from keys and values
        allocate = cache.layers[0].lazy_initialization
        allocate(*[K] * len(inspect.signature(allocate).parameters))
        if counts(cache):
            cache.layers[0].cumulative_length.add_(int(POSITION[0]))
    return cache


POSITION = torch.tensor([1, 2, 3])


@pytest.mark.parametrize("norms", [True, False])
def test_the_plan_does_what_the_statements_do(norms: bool) -> None:
    attn, v = Attention(), torch.randn_like(K)
    results = []
    for planned in (True, False):
        cache = static_cache()
        with torch.no_grad():
            plan = amd_ops.qk_rope(attn, cache, POSITION, norms=norms) if planned else None
            assert planned == (plan is not None)
            if not norms and plan is not None:  # norms stay with the module where the text does not hand them over
                plan.q_norm, plan.k_norm = attn.q_norm, attn.k_norm
            results.append((*attn(Q, K, v, cache, POSITION, plan), cache.layers[0].keys, cache.layers[0].values))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert bool(results[0][3][:, :, 0].eq(0).all())
    assert amd_ops.report().calls("rope_into_cache") == 1


def test_tables_of_halves_are_written_as_stock_writes_them() -> None:
    stock: Any = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    attn, v = Attention(), torch.randn_like(K)
    whole = torch.randn(1, 3, 8)
    cos, sin = whole[..., :4].cos(), whole[..., :4].sin()
    with torch.no_grad():
        cache = static_cache()
        plan = amd_ops.qk_rope(attn, cache, POSITION, rotate=stock.apply_rotary_pos_emb, halves=True)
        assert plan is not None
        q, k = plan(Q, K, v, cos, sin)
        keys, values = plan.update(k, v, 0)
        want_q, want_k = stock.apply_rotary_pos_emb(Q, K, cos, sin)
    assert amd_ops.report().calls("rope_into_cache") == 1
    torch.testing.assert_close(q, want_q, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(keys[:, :, POSITION], want_k, rtol=1e-6, atol=1e-6)
    assert torch.equal(values[:, :, POSITION], v)


def test_whole_tables_are_left_to_a_rotation_that_takes_halves() -> None:
    stock: Any = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    plan = amd_ops.qk_rope(Attention(), static_cache(), POSITION, rotate=stock.apply_rotary_pos_emb, halves=True)
    assert plan is not None
    with torch.no_grad(), pytest.raises(RuntimeError, match="size of tensor"):  # stock's own words
        plan(Q, K, K, torch.ones(1, 3, 8), torch.ones(1, 3, 8))
    assert "the tables have not one column for each pair" in reasons("qk_rope")


def test_a_watched_head_norm_is_called_and_the_cache_is_still_written_to() -> None:
    attn, seen = Attention(), []
    attn.k_norm.register_forward_hook(lambda module, arguments, output: seen.append(1) or output * 3)
    results = []
    for planned in (True, False):
        cache = static_cache()
        with torch.no_grad():
            plan = amd_ops.qk_rope(attn, cache, POSITION, norms=True) if planned else None
            results.append(attn(Q, K, K, cache, POSITION, plan))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert len(seen) == 2


def test_without_a_static_cache_the_cache_itself_is_updated() -> None:
    transformers = transformers_with_cache_layers()
    attn, cache = Attention(), transformers.DynamicCache()
    plan = amd_ops.qk_rope(attn, cache, POSITION, norms=True)
    _, keys, _ = attn(Q, K, K, cache, POSITION, plan)
    assert keys is cache.layers[0].keys
    assert amd_ops.qk_rope(attn, cache, POSITION) is None
    assert reasons("qk_rope") == {"there are no head norms; there is no static cache": 1}


def sliding() -> Any:
    transformers = transformers_with_cache_layers()
    config = transformers.MistralConfig(
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, sliding_window=4
    )
    return transformers.StaticCache(config, max_cache_len=6)


def own_update() -> Any:
    cache = static_cache()

    class Own(type(cache)):  # type: ignore[misc]
        def update(self, *args: Any, **kwargs: Any) -> Any:
            return super().update(*args, **kwargs)

    cache.__class__ = Own
    return cache


def patched_update() -> Any:
    cache = static_cache()
    cache.layers[0].update = cache.layers[0].update
    return cache


def offloading() -> Any:
    cache = static_cache()
    cache.offloading = True
    return cache


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (sliding, "there is no static cache"),
        (own_update, "the cache has an update of its own"),
        (offloading, "the cache has an update of its own"),
        (patched_update, "the cache's update has been patched"),
        (lambda: static_cache(allocated=False), "the static cache has no storage yet"),
        (lambda: None, "there is no static cache"),
    ],
)
def test_caches_that_do_more_than_two_writes_are_left_to_stock(make: Any, reason: str) -> None:
    assert amd_ops.qk_rope(Attention(), make(), POSITION) is None
    assert reasons("qk_rope") == {f"there are no head norms; {reason}": 1}


def test_no_position_and_tensors_that_do_not_fit_the_cache() -> None:
    cache = static_cache()
    assert (amd_ops.qk_rope(Attention(), cache, None) is not None) == counts(cache)
    plan = amd_ops.qk_rope(Attention(), cache, POSITION)
    assert plan is not None
    plan(Q.bfloat16(), K.bfloat16(), K.bfloat16(), C.bfloat16(), C.bfloat16())  # the cache is fp32: stock must decide
    assert not cache.layers[0].keys.any()
    gradient = K.clone().requires_grad_()
    plan(Q, gradient, K, C, C)
    assert not cache.layers[0].keys.any()


@pytest.mark.parametrize("change", ["hook", "eps", "mark"])
def test_head_norms_that_are_more_than_their_formula(change: str) -> None:
    attn = Attention()
    if change == "hook":
        hooked(attn.q_norm)
    elif change == "eps":
        attn.k_norm.variance_epsilon = 1e-3
    else:
        attn.q_norm = nn.LayerNorm(8)
    assert amd_ops.qk_rope(attn, None, None, norms=True) is None
    (reason,) = reasons("qk_rope")
    assert reason.split(";")[0] in (
        "a hook is registered on the module",
        "the two head norms differ in form, eps or size",
        "the norm's forward is not one that the overlaid text marks as an RMS norm",
    )
