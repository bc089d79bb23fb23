"""Faults planted under overlaid forwards: the case sees each, and the bisect names the function that carries it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rocm_overlay.verify import bisect
from rocm_overlay.verify.compare import judge
from rocm_overlay.verify.switches import functions_of
from transformers import GptOssConfig

import amd_ops
from examples.tiny_models import build
from tests.parity import twins
from tests.parity.test_planted_faults import FAULTS, ON, attention_with
from tests.verify.support import generated

Fault = Callable[..., Any]
# A layer whose last sum is fused asks mlp_add for the whole MLP: at stock, or gated_mlp would have no caller.
SETTINGS = {**ON, "tiers": "torch,eager", "stock": "mlp_add"}
RUN = {"tier": "torch", "settings": SETTINGS}
NAMES = ("q_proj", "k_proj", "v_proj")
REAL_NORM = amd_ops.rms_norm


def stale() -> Fault:
    """Fused weights that are made once and never looked at again."""
    kept: dict[int, torch.Tensor] = {}

    def qkv_proj(attn: Any, x: torch.Tensor, *rest: Any) -> Any:
        weights = [getattr(attn, name).weight for name in NAMES]
        packed = kept.setdefault(id(attn), torch.cat(weights).detach())
        return F.linear(x, packed).split([weight.shape[0] for weight in weights], dim=-1)

    return qkv_proj


def around_the_modules(attn: Any, x: torch.Tensor, *rest: Any) -> Any:
    """Reads the weights and calls nobody: adapters and hooks are passed by."""
    return tuple(F.linear(x, getattr(attn, name).weight) for name in NAMES)


def rounded_once(x: torch.Tensor, weight: torch.Tensor, eps: float, *, form: str = "llama") -> torch.Tensor:
    """The form that multiplies in fp32 and rounds at the end, where llama's rounds before the weight."""
    return REAL_NORM(x, weight, eps, form="fp32_weight")


def act_swapped(mlp: Any, x: torch.Tensor, **names: Any) -> torch.Tensor:
    return mlp.down_proj(F.relu(mlp.gate_proj(x)) * mlp.up_proj(x))


# Name, function, fault, architecture, case, dtype.
MORE: list[tuple[str, str, Fault, str, str, str]] = [
    ("stale fused weight", "qkv_proj", stale(), "llama", "updated-weights", "float32"),
    ("adapter bypassed", "qkv_proj", around_the_modules, "llama", "adapter", "float32"),
    ("hook bypassed", "qkv_proj", around_the_modules, "llama", "hooks", "float32"),
    ("rounding form swapped", "rms_norm", rounded_once, "llama", "rounding", "bfloat16"),
    ("relu for silu", "gated_mlp", act_swapped, "llama", "prefill", "float32"),
    ("kv heads tiled, beams", "route_attention", attention_with(heads="tiled"), "llama", "beam", "float32"),
]
ALL = [(name, function, fault, model, cases[0], "float32") for name, function, fault, model, cases in FAULTS] + MORE


def within(pair: twins.Pair, case: str, how: str, dtype: str) -> bool:
    return judge(pair.reference(case, how), pair.found(case, how), tier="torch", dtype=dtype, bitwise=False).ok


def named(pair: twins.Pair, case: str, how: str, dtype: str, functions: dict[str, list[str]]) -> dict[str, Any]:
    return bisect.find(pair.overlay, RUN, lambda: within(pair, case, how, dtype), functions, dtype)


@pytest.mark.parametrize(("function", "fault", "model", "case", "dtype"), [f[1:] for f in ALL], ids=[f[0] for f in ALL])
def test_the_bisect_names_the_function(
    function: str, fault: Fault, model: str, case: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = twins.new_pair(model, dtype)
    how = "eager" if model == "gemma2" else "sdpa"
    text = twins.overlay_text(model, Path(twins.stock_module(model).__file__ or "").read_bytes())
    with amd_ops.override(**SETTINGS):
        assert within(pair, case, how, dtype), "the case fails without a fault"
        monkeypatch.setattr(amd_ops, function, fault)
        assert not within(pair, case, how, dtype), "the case does not see the fault"
    found = named(pair, case, how, dtype, functions_of([text]))
    assert [item["functions"] for item in found["switches"]] == [[function]], found
    if case not in ("hooks", "adapter", "updated-weights", "rounding"):  # those watch the modules themselves
        expected = {"rms_norm": "Norm", "gated_mlp": "MLP"}.get(function, "Attention")
        assert expected in found["layer"]["class"], found


def test_a_wrong_tier_is_told_from_a_wrong_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op's torch tier is wrong and its eager formula is right: op and tier are named."""
    from amd_ops import dispatch

    op = dispatch.ops["rms_norm"]
    assert isinstance(op, dispatch.Op)
    bad = dispatch.Tier("torch", dispatch.always(lambda x, weight, eps, form: x * weight))
    pair = twins.new_pair("llama", "float32")
    pair.reference("prefill", "sdpa")
    monkeypatch.setattr(op, "tiers", tuple(bad if tier.name == "torch" else tier for tier in op.tiers))
    op.unbind()
    try:
        found = named(pair, "prefill", "sdpa", "float32", {"rms_norm": ["rms_norm"]})
    finally:
        monkeypatch.undo()
        op.unbind()
    (item,) = found["switches"]
    assert (item["op"], item["tier"]) == ("rms_norm", "torch")
    assert found["layer"]["path"] == "model.layers.0.input_layernorm"


def test_sinks_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpt_oss has a logit per head that takes part in the softmax."""
    config = GptOssConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
        pad_token_id=0, eos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    source = generated("gpt_oss")
    stock = build(config)
    with torch.no_grad():
        for layer in stock.model.layers:
            layer.self_attn.sinks.fill_(2.0)
    module = twins.load_twin("gpt_oss", source.overlay, "sinks")
    overlay = twins.causal_class(module)._from_config(config, attn_implementation="eager").eval()
    overlay.load_state_dict(stock.state_dict())
    pair = twins.Pair(stock, overlay)

    def without_sinks(module: Any, stock_interface: Any) -> Any:
        def interface(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: Any = None, **kwargs: Any) -> Any:
            args = (x.transpose(1, 2) for x in (q, k, v))
            out = amd_ops.attention(*args, scaling=scaling, is_causal=False, attention_mask=mask)
            return out, None

        return interface

    with amd_ops.override(**SETTINGS):
        assert within(pair, "prefill", "eager", "float32"), "the case fails without a fault"
        monkeypatch.setattr(amd_ops, "route_attention", without_sinks)
        assert not within(pair, "prefill", "eager", "float32")
    found = named(pair, "prefill", "eager", "float32", functions_of([source.overlay]))
    assert [item["functions"] for item in found["switches"]] == [["route_attention"]]


def test_there_are_enough_mutants() -> None:
    assert len({name for name, *_ in ALL}) + 2 >= 15
