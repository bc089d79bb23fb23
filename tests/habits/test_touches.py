"""Recognised thing x way to touch it: whatever stands in asks whether that very object is still there.

Every touch doubles what the thing gives and counts its calls. Stock and ours, overlaid or kernelized, are touched
alike: the same numbers, and as many calls seen, are right.
"""

from __future__ import annotations

import copy
import functools
import importlib
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
import wrapt
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import amd_ops
from amd_ops.kernelize import layers, proof
from tests.habits.touches import WAYS, Seen, Touch, attribute
from tests.parity import twins

ON: dict[str, object] = {"use_aiter_attention": 1, "use_optimized_ops": 1, "use_fused_projections": 1}
IDS = torch.randint(5, 100, (2, 7), generator=torch.Generator().manual_seed(3))


THINGS = {
    "norm": ("llama", "model.layers.0.post_attention_layernorm"),
    "first norm": ("llama", "model.layers.0.input_layernorm"),
    "norm with an offset": ("gemma3", "model.layers.0.post_attention_layernorm"),
    "head norm": ("qwen3", "model.layers.0.self_attn.q_norm"),
    "MLP": ("llama", "model.layers.0.mlp"),
    "activation": ("llama", "model.layers.0.mlp.act_fn"),
    "GELU": ("gemma3", "model.layers.0.mlp.act_fn"),
    "q_proj": ("llama", "model.layers.0.self_attn.q_proj"),
    "gate_proj": ("llama", "model.layers.0.mlp.gate_proj"),
    "down_proj": ("llama", "model.layers.0.mlp.down_proj"),
}
if transformers.__version__.startswith("4."):  # experts are modules of their own
    THINGS |= {
        "block of experts": ("mixtral", "model.layers.0.block_sparse_moe"),
        "expert": ("mixtral", "model.layers.0.block_sparse_moe.experts.1"),
        "expert's Linear": ("mixtral", "model.layers.0.block_sparse_moe.experts.1.w3"),
        "expert's activation": ("mixtral", "model.layers.0.block_sparse_moe.experts.0.act_fn"),
    }
else:  # they are one parameter
    THINGS |= {
        "block of experts": ("mixtral", "model.layers.0.mlp"),
        "router": ("mixtral", "model.layers.0.mlp.gate"),
        "experts": ("mixtral", "model.layers.0.mlp.experts"),
        "experts' activation": ("mixtral", "model.layers.0.mlp.experts.act_fn"),
    }
ROUTES = ("overlaid", "kernelized")
QUICK = ("instance_forward", "wrapped_class_forward", "forward_hook", "wraps")
"""Of the kernelized cells, those that `make test` runs."""


@functools.cache
def pair(architecture: str, route: str = "overlaid") -> twins.Pair:
    """One pair for all cells: every touch is taken back."""
    sizes = {} if architecture == "gemma3" else {"num_hidden_layers": 1}
    made = twins.new_pair(architecture, "float32", **sizes)
    if route == "kernelized":
        made.overlay = copy.deepcopy(made.stock)
        with amd_ops.override(**ON):
            amd_ops.kernelize_model(made.overlay)
    for model in (made.stock, made.overlay):
        model.requires_grad_(False)
    return made


def each(ways: list[Any], routes: tuple[str, ...] = ROUTES) -> Any:
    """Every way on every route."""
    cells = [(way, route) for way in ways for route in routes]
    marks = [() if route == "overlaid" or way.__name__ in QUICK else pytest.mark.full for way, route in cells]
    return pytest.mark.parametrize(
        ("way", "route"),
        [
            pytest.param(*cell, marks=mark, id=f"{cell[0].__name__}-{cell[1]}")
            for cell, mark in zip(cells, marks, strict=True)
        ],
    )


def measured(model: Any, on: dict[str, object], seen: Seen) -> tuple[torch.Tensor, torch.Tensor | None, int]:
    """Logits, the gradient of the embeddings, and the calls seen."""
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    seen.calls = 0
    with amd_ops.override(**on):
        logits = model(inputs_embeds=embedded).logits
        logits.square().sum().backward()
    return logits.detach(), embedded.grad, seen.calls


def agree(found: Any, want: Any) -> None:
    for ours, theirs in zip(found[:2], want[:2], strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4
    assert found[2] == want[2]


@each(WAYS)
@pytest.mark.parametrize("thing", THINGS)
def test_modules(thing: str, way: Touch, route: str) -> None:
    architecture, path = THINGS[thing]
    both = pair(architecture, route)
    plain = measured(both.overlay, ON, Seen())  # packed and bound before it is touched
    results = []
    for model, on in ((both.stock, {}), (both.overlay, ON), (both.overlay, ON)):
        seen = Seen()
        with way(model.get_submodule(path), seen):
            results.append(measured(model, on, seen))
    want, *found = results
    assert want[2] > 0
    agree(found[0], want)
    agree(found[1], want)
    agree(measured(both.overlay, ON, Seen()), plain)


def unproven(architecture: str) -> tuple[Any, Any]:
    """Stock, and its kernelized copy, no replacement of which was compared with the original yet."""
    proof.forget()
    layers.forget()
    stock = copy.deepcopy(pair(architecture, "kernelized").stock)
    ours = copy.deepcopy(stock)
    with amd_ops.override(**ON):
        amd_ops.kernelize_model(ours)
    return stock, ours


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("thing", [thing for thing in THINGS if thing not in ("norm with an offset", "GELU")])
def test_what_is_touched_is_not_probed(thing: str, way: Touch) -> None:
    """The first call compares a replacement with the original: it may not run what somebody put in twice."""
    architecture, path = THINGS[thing]
    results = []
    for model, on in zip(unproven(architecture), ({}, ON), strict=True):
        seen = Seen()
        with way(model.get_submodule(path), seen):
            results.append(measured(model, on, seen))
    agree(results[1], results[0])


@pytest.mark.parametrize("name", ["silu", "linear", "scaled_dot_product_attention"])
def test_a_function_that_is_touched_is_not_probed(name: str) -> None:
    results = []
    for model, on in zip(unproven("llama"), ({}, ON), strict=True):
        seen = Seen()
        with attribute(F, name, wraps(getattr(F, name), seen)):
            results.append(measured(model, on, seen))
    agree(results[1], results[0])


def test_what_was_touched_is_proven_afterwards() -> None:
    """Nothing that was seen while something was touched is kept as a verdict."""
    stock, ours = unproven("llama")
    with attribute(F, "silu", wraps(F.silu, Seen())):
        measured(ours, ON, Seen())
    agree(measured(ours, ON, Seen()), measured(stock, {}, Seen()))
    before = [dict(row.fallbacks) for row in amd_ops.kernelize_report(ours).applied]
    measured(ours, ON, Seen())
    assert any(before)
    assert [dict(row.fallbacks) for row in amd_ops.kernelize_report(ours).applied] == before


def wraps(inner: Any, seen: Seen) -> Any:
    @functools.wraps(inner)
    def around(*args: Any, **kwargs: Any) -> Any:
        return changed(inner(*args, **kwargs), seen)

    return around


def changed(result: Any, seen: Seen) -> Any:
    if isinstance(result, tuple) and result[-1] is None:
        return (seen.twice(result[0]), None)
    return seen.twice(result)


def replaced(inner: Any, seen: Seen) -> Any:
    return lambda *args, **kwargs: changed(inner(*args, **kwargs), seen)


def wrapt_proxy(inner: Any, seen: Seen) -> Any:
    return wrapt.FunctionWrapper(inner, lambda wrapped, _, args, kwargs: changed(wrapped(*args, **kwargs), seen))


def partial(inner: Any, seen: Seen) -> Any:
    return functools.partial(replaced(inner, seen))


class Callee:
    """An object that is called."""

    def __init__(self, inner: Any, seen: Seen) -> None:
        self.inner, self.seen = inner, seen
        functools.update_wrapper(self, inner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return changed(self.inner(*args, **kwargs), self.seen)


FUNCTIONS = {
    "rotation": ("llama", "apply_rotary_pos_emb"),
    "rotation behind head norms": ("qwen3", "apply_rotary_pos_emb"),
    "rotate_half": ("llama", "rotate_half"),
    "rotate_half behind head norms": ("qwen3", "rotate_half"),
    "eager attention": ("llama", "eager_attention_forward"),
    "repeat_kv": ("llama", "repeat_kv"),
}


WRAPPERS = [wraps, replaced, wrapt_proxy, partial, Callee]


@each(WRAPPERS)
@pytest.mark.parametrize("thing", FUNCTIONS)
def test_functions_of_the_file(thing: str, way: Any, route: str) -> None:
    architecture, name = FUNCTIONS[thing]
    both = pair(architecture, route)
    both.set_implementation("eager" if name in ("eager_attention_forward", "repeat_kv") else "sdpa")
    stock = twins.stock_module(architecture)
    ours = twins.overlay_module(architecture) if route == "overlaid" else stock
    homes = (stock, ours, ours)
    plain = measured(both.overlay, ON, Seen())
    results = []
    try:
        for model, home, on in zip((both.stock, both.overlay, both.overlay), homes, ({}, ON, ON), strict=True):
            seen = Seen()
            with attribute(home, name, way(getattr(home, name), seen)):
                results.append(measured(model, on, seen))
        agree(results[1], results[0])
        agree(results[2], results[0])
        assert results[0][2] > 0
        agree(measured(both.overlay, ON, Seen()), plain)
    finally:
        both.set_implementation("sdpa")


@each(WRAPPERS)
@pytest.mark.parametrize("name", ["silu", "linear", "scaled_dot_product_attention"])
def test_functions_of_torch(name: str, way: Any, route: str) -> None:
    both = pair("llama", route)
    measured(both.overlay, ON, Seen())
    results = []
    for model, on in ((both.stock, {}), (both.overlay, ON)):
        seen = Seen()
        with attribute(F, name, way(getattr(F, name), seen)):
            results.append(measured(model, on, seen))
    assert results[0][2] > 0
    agree(results[1], results[0])


@each(WRAPPERS)
def test_the_registered_attention(way: Any, route: str) -> None:
    both, stock = pair("llama", route), ALL_ATTENTION_FUNCTIONS["sdpa"]
    measured(both.overlay, ON, Seen())
    results = []
    for model, on in ((both.stock, {}), (both.overlay, ON)):
        seen = Seen()
        ALL_ATTENTION_FUNCTIONS["sdpa"] = way(stock, seen)
        try:
            results.append(measured(model, on, seen))
        finally:  # the table's own entry goes: one that stays, if only stock's, hides the library's from then on
            del ALL_ATTENTION_FUNCTIONS["sdpa"]
    agree(results[1], results[0])


@pytest.mark.parametrize("thing", ["class", "instance"])
@pytest.mark.parametrize("how", [wraps, replaced], ids=lambda how: how.__name__)
def test_the_update_of_a_static_cache(thing: str, how: Any) -> None:
    caches = importlib.import_module("transformers.cache_utils")
    both, layer = pair("llama"), caches.StaticLayer
    counts = []
    for model, on in ((both.stock, {}), (both.overlay, ON)):
        seen, cache = Seen(), caches.StaticCache(config=model.config, max_cache_len=16)

        def counting(inner: Any, seen: Seen = seen) -> Any:
            @functools.wraps(inner)
            def update(*args: Any, **kwargs: Any) -> Any:
                seen.calls += 1
                return inner(*args, **kwargs)

            return update

        owner = layer if thing == "class" else cache.layers[0]
        with ExitStack() as stack, torch.no_grad(), amd_ops.override(**on):
            stack.enter_context(attribute(owner, "update", counting(owner.update)))
            for part, at in ((IDS[:, :6], torch.arange(6)), (IDS[:, 6:], torch.arange(6, 7))):
                model(part, past_key_values=cache, use_cache=True, cache_position=at)
        counts.append(seen.calls)
    assert counts == [2, 2]
