"""Whatever is done to a model between two forwards: its numbers are stock's, with a new plan or with none."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache

import amd_ops
from amd_ops import plans
from tests.parity import twins
from tests.plans.support import COUNTS_ITSELF, OFF, ON, assert_close, decode, planned_and_stock, ran, site, step

ALL, SOME, NONE = 3, -1, 0
"""How many of three steps a plan must run after a change: every one, as many as it likes, none."""


@pytest.fixture
def model() -> Iterator[Any]:
    with torch.no_grad():
        yield twins.new_pair("llama", "float32", num_hidden_layers=3).overlay


def layer(model: Any, index: int = 1) -> Any:
    return model.model.layers[index]


def hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, args, out: out * 1.5 if torch.is_tensor(out) else None)


def swapped(model: Any) -> None:
    layers = model.model.layers
    layers[0], layers[1] = layers[1], layers[0]


def scaled(model: Any, factor: float) -> dict[str, Any]:
    return {name: value * factor for name, value in model.state_dict().items()}


CHANGES: dict[str, tuple[Callable[[Any], object], int]] = {
    "nothing": (lambda model: None, ALL),
    "forward hook on q_proj": (lambda model: hook(layer(model).self_attn.q_proj), NONE),
    "forward hook on a norm": (lambda model: hook(layer(model).input_layernorm), NONE),
    "forward hook on act_fn": (lambda model: hook(layer(model).mlp.act_fn), NONE),
    "forward hook on the MLP": (lambda model: hook(layer(model).mlp), NONE),
    "forward pre-hook on a layer": (
        lambda model: layer(model).register_forward_pre_hook(lambda module, args: (args[0] * 1.1, *args[1:])),
        NONE,
    ),
    "backward pre-hook on act_fn": (
        lambda model: layer(model).mlp.act_fn.register_full_backward_pre_hook(lambda module, grad: None),
        NONE,
    ),
    "patched forward of an MLP": (lambda model: setattr(layer(model).mlp, "forward", lambda x: x * 0.5), NONE),
    "patched forward of a norm": (lambda model: setattr(layer(model).input_layernorm, "forward", lambda x: x), NONE),
    "compiled MLP": (lambda model: layer(model).mlp.compile(backend="eager"), NONE),
    "replaced Linear": (lambda model: setattr(layer(model).self_attn, "o_proj", nn.Linear(64, 64, bias=False)), ALL),
    "replaced Parameter": (
        lambda model: setattr(layer(model).self_attn.q_proj, "weight", nn.Parameter(torch.randn(64, 64) / 8)),
        ALL,
    ),
    "replaced in _parameters": (
        lambda model: layer(model).mlp.up_proj._parameters.__setitem__("weight", nn.Parameter(torch.randn(96, 64) / 8)),
        ALL,
    ),
    "data of a weight replaced": (
        lambda model: setattr(layer(model).mlp.down_proj.weight, "data", torch.randn(64, 96) / 8),
        ALL,
    ),
    "data transposed in place": (
        lambda model: setattr(
            layer(model).self_attn.o_proj.weight, "data", layer(model).self_attn.o_proj.weight.data.t()
        ),
        SOME,
    ),
    "data of a norm replaced": (
        lambda model: setattr(layer(model).input_layernorm.weight, "data", torch.rand(64)),
        ALL,
    ),
    "update in place": (lambda model: layer(model).self_attn.k_proj.weight.mul_(1.3), ALL),
    "write through data": (lambda model: layer(model).mlp.up_proj.weight.data.mul_(1.3), ALL),
    "write through numpy": (lambda model: layer(model).mlp.up_proj.weight.numpy().__imul__(1.3), ALL),
    "share_memory": (lambda model: model.share_memory(), SOME),
    "load_state_dict": (lambda model: model.load_state_dict(scaled(model, 1.01)), ALL),
    "load_state_dict that assigns": (lambda model: model.load_state_dict(scaled(model, 1.01), assign=True), ALL),
    "to another dtype and back": (lambda model: model.to(torch.bfloat16).to(torch.float32), ALL),
    "a shallow copy of a layer": (lambda model: model.model.layers.__setitem__(1, copy.copy(layer(model))), ALL),
    "layers swapped": (swapped, SOME),
    "fewer layers": (lambda model: setattr(model.config, "num_hidden_layers", 2), ALL),
    "another eps": (lambda model: setattr(layer(model).input_layernorm, "variance_epsilon", 0.5), ALL),
    "another scaling": (lambda model: setattr(layer(model).self_attn, "scaling", 0.01), ALL),
    "eager attention": (lambda model: model.set_attn_implementation("eager"), NONE),
    "a bias that was none": (
        lambda model: setattr(layer(model).self_attn.o_proj, "bias", nn.Parameter(torch.randn(64))),
        ALL,
    ),
    "weight norm": (lambda model: nn.utils.parametrizations.weight_norm(layer(model).mlp.down_proj), NONE),
    "training mode": (lambda model: model.train(), NONE),
    "one module in training mode": (lambda model: layer(model).self_attn.train(), NONE),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_between_two_decodes_is_noticed(model: Any, name: str) -> None:
    change, wanted = CHANGES[name]
    assert planned_and_stock(model) == ALL  # makes the plan
    change(model)
    count = planned_and_stock(model)
    assert wanted in (SOME, count), site().fast.declined


def test_a_class_that_is_patched_is_noticed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned_and_stock(model) == ALL
    monkeypatch.setattr(type(layer(model).mlp), "forward", lambda self, x: x * 0.25)
    planned_and_stock(model)
    monkeypatch.undo()
    assert planned_and_stock(model) == ALL


def test_a_wrapper_that_copies_the_marks_is_noticed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(layer(model).self_attn)
    stock = kind.forward

    @functools.wraps(stock)
    def louder(*args: Any, **kwargs: Any) -> Any:
        out, weights = stock(*args, **kwargs)
        return out * 2, weights

    assert planned_and_stock(model) == ALL
    monkeypatch.setattr(kind, "forward", louder)
    assert planned_and_stock(model) == NONE


def test_a_rotation_replaced_in_its_module_is_noticed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned_and_stock(model) == ALL
    module: Any = twins.overlay_module("llama")
    monkeypatch.setattr(module, "apply_rotary_pos_emb", lambda q, k, cos, sin, *more: (q, k))
    with amd_ops.override(**ON, tiers="torch,eager"):
        amd_ops.reset_counters()
        decode(model)
        assert ran() == NONE


def test_half_a_rotation_replaced_in_its_module_is_noticed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned_and_stock(model) == ALL
    monkeypatch.setattr(twins.overlay_module("llama"), "rotate_half", lambda x: -x)
    assert planned_and_stock(model) == NONE


def test_sdpa_replaced_in_the_table_is_noticed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def louder(*args: Any, **kwargs: Any) -> Any:
        out, weights = sdpa_attention_forward(*args, **kwargs)
        return out * 2, weights

    assert planned_and_stock(model) == ALL
    monkeypatch.setitem(twins.overlay_module("llama").ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", louder)
    assert planned_and_stock(model) == NONE


@pytest.mark.parametrize("name", ["scaled_dot_product_attention", "silu", "linear"])
@pytest.mark.parametrize("tiers", ["torch,eager", "eager"])
def test_a_function_of_torch_that_was_replaced_is_noticed(
    model: Any, name: str, tiers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiers other than torch's would not call it."""
    assert planned_and_stock(model) == ALL
    stock = getattr(functional, name)
    calls: list[int] = []
    monkeypatch.setattr(functional, name, lambda *args, **words: (calls.append(1), 2 * stock(*args, **words))[1])
    with amd_ops.override(**OFF):
        wanted = decode(model)
    count = len(calls)
    with amd_ops.override(**{**ON, "tiers": tiers}):
        amd_ops.reset_counters()
        found = decode(model)
        assert ran() == NONE
    assert len(calls) == 2 * count
    assert_close(found, wanted)


@pytest.mark.parametrize("name", ["repeat_kv", "use_gqa_in_sdpa"])
def test_a_helper_of_sdpa_that_was_replaced_is_noticed(model: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import sdpa_attention

    assert planned_and_stock(model) == ALL
    monkeypatch.setattr(sdpa_attention, name, functools.partial(getattr(sdpa_attention, name)))
    assert planned_and_stock(model) == NONE


def test_a_global_hook_is_noticed(model: Any) -> None:
    assert planned_and_stock(model) == ALL
    double = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: out * 1.01 if isinstance(module, nn.Linear) else None
    )
    try:
        assert planned_and_stock(model) == NONE
    finally:
        double.remove()
    assert planned_and_stock(model) == ALL


def test_a_deep_copy_has_a_plan_of_its_own(model: Any) -> None:
    assert planned_and_stock(model) == ALL
    other = copy.deepcopy(model)
    layer(other).self_attn.q_proj.weight.mul_(2)
    assert planned_and_stock(other) == ALL
    assert planned_and_stock(model) == ALL


def test_adapters_and_their_merge_are_seen(model: Any) -> None:
    peft = pytest.importorskip("peft")
    assert planned_and_stock(model) == ALL
    adapter = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, adapter).eval()
    assert planned_and_stock(wrapped) == NONE
    assert planned_and_stock(wrapped.merge_and_unload().eval()) == ALL


def test_what_is_asked_for_beside_the_logits_leaves_the_layers_to_themselves(model: Any) -> None:
    assert planned_and_stock(model) == ALL
    kept = []
    for toggles in ({**ON, "tiers": "torch,eager"}, OFF):
        with amd_ops.override(**toggles):
            cache = DynamicCache()
            step(model, torch.arange(3, 9)[None], cache, 0)
            kept.append(model(torch.tensor([[5]]), past_key_values=cache, output_hidden_states=True))
    ours, theirs = kept
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4
    assert_close([*ours.hidden_states], [*theirs.hidden_states])
    assert planned_and_stock(model) in (NONE, ALL)


@torch.no_grad()
def test_a_layer_that_chooses_its_tables_by_a_flag_follows_the_flag() -> None:
    gemma = twins.new_pair("gemma3", "float32").overlay
    assert planned_and_stock(gemma) == ALL
    attention = layer(gemma).self_attn
    attention.is_sliding = not attention.is_sliding
    assert planned_and_stock(gemma) == ALL


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
@torch.no_grad()
def test_a_loop_that_keeps_what_was_asked_for_runs_through_its_layers(asked: str) -> None:
    gemma = twins.new_pair("gemma3", "float32").overlay
    assert planned_and_stock(gemma) == ALL
    gemma.config._attn_implementation = "eager" if asked == "output_attentions" else "sdpa"
    kept = []
    for toggles in ({**ON, "tiers": "torch,eager"}, OFF):
        with amd_ops.override(**toggles):
            cache = DynamicCache()
            step(gemma, torch.arange(3, 9)[None], cache, 0)
            amd_ops.reset_counters()
            out = gemma(torch.tensor([[5]]), past_key_values=cache, **{asked: True})
            assert ran() == NONE
            kept.append(out[asked.removeprefix("output_")])
    ours, theirs = kept
    assert len(ours) == len(theirs) == gemma.config.num_hidden_layers + (asked == "output_hidden_states")
    assert_close([*ours], [*theirs])


def test_gradients_and_autocast_leave_the_layers_to_themselves(model: Any) -> None:
    assert planned_and_stock(model) == ALL
    with torch.enable_grad():
        assert planned_and_stock(model) == NONE
    with torch.autocast("cpu", torch.bfloat16), amd_ops.override(**ON, tiers="torch,eager"):
        amd_ops.reset_counters()
        decode(model)
        assert ran() == NONE


def test_a_capture_takes_a_plan_that_is_there_and_makes_none(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "capturing", lambda: True)
    with amd_ops.override(**ON, tiers="torch,eager"):
        amd_ops.reset_counters()
        want = decode(model)
        assert ran() == NONE
        monkeypatch.setattr(plans, "capturing", lambda: False)
        decode(model)
        monkeypatch.setattr(plans, "capturing", lambda: True)
        amd_ops.reset_counters()
        got = decode(model)
        assert ran() == ALL
    assert_close(got, want)


def test_nothing_is_held_after_a_model_or_a_layer_is_gone(model: Any) -> None:
    import gc
    import weakref

    assert planned_and_stock(model) == ALL
    weight = weakref.ref(layer(model).mlp.down_proj.weight)
    del model.model.layers[1]
    gc.collect()
    assert weight() is None
    storage = weakref.ref(layer(model, 0).self_attn.o_proj.weight.untyped_storage())
    model.to(torch.bfloat16)
    gc.collect()
    assert storage() is None


@pytest.mark.skipif(not COUNTS_ITSELF, reason="the layers of this release do not count for themselves")
def test_static_layers_count_on(model: Any) -> None:
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=16)
    with amd_ops.override(**ON, tiers="torch,eager"):
        decode(model, cache=cache)
    assert {int(one.cumulative_length) for one in cache.layers} == {9}
