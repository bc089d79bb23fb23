"""What crosses module borders (sums with norms and GEMMs, head norms with rotation and cache, experts): the same
model, with hooks on every module that a fused path could pass by, and with faults that the cases must see.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rocm_overlay.verify.cases import CASES
from rocm_overlay.verify.compare import judge
from torch import nn

import amd_ops
from examples.tiny_models import EXTRA_ARCHITECTURES
from tests.parity import twins

ON = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}
QUICK = ("prefill", "decode", "static-cache", "padded", "hidden-states", "training-step", "gradient-checkpointing")
experts_file = importlib.import_module("amd_ops.forward.experts")
stacked_file = importlib.import_module("amd_ops.forward.stacked")
rope_file = importlib.import_module("amd_ops.forward.qk_rope")


def how(architecture: str) -> str:
    return "eager" if architecture == "gpt_oss" else "sdpa"


def cases(architecture: str) -> list[Any]:
    """Every case that stock itself can run; the long ones only in the full suite."""
    names = [name for name, case in CASES.items() if how(architecture) == "eager" or not case.eager_only]
    if architecture == "deepseek_v3":  # stock's static layers cannot hold values of another width than the keys
        names = [name for name in names if name not in ("static-cache", "sliding-cache")]
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in names]


RUNS = [
    pytest.param(architecture, *(case.values if hasattr(case, "values") else (case,)), marks=getattr(case, "marks", ()))
    for architecture in EXTRA_ARCHITECTURES
    for case in cases(architecture)
]


@pytest.fixture
def everything_on() -> Iterator[None]:
    with amd_ops.override(tiers="torch,eager", **ON):
        yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("architecture", "case"), RUNS)
def test_off_is_bit_equal_to_stock(architecture: str, case: str, dtype: str) -> None:
    pair = twins.pair(architecture, dtype)
    reference = pair.reference(case, how(architecture))
    verdict = judge(reference, pair.found(case, how(architecture)), tier="off", dtype=dtype, bitwise=True)
    assert verdict.ok, verdict.deviating


@pytest.mark.parametrize(("architecture", "case"), RUNS)
def test_on_is_the_same_model(architecture: str, case: str, everything_on: None) -> None:
    pair = twins.pair(architecture, "float32")
    found = pair.found(case, how(architecture))
    verdict = judge(
        pair.reference(case, how(architecture)), found, tier="torch", dtype="float32", bitwise=False
    )  # fmt: skip
    assert verdict.ok, verdict.deviating


@pytest.mark.parametrize("case", ["prefill", "decode", "static-cache"])
def test_on_is_the_same_model_in_half_precision(case: str, everything_on: None) -> None:
    """Not for experts: a router whose input is rounded elsewhere decides a near-tie the other way."""
    pair = twins.pair("gemma3", "bfloat16")
    found = pair.found(case, "sdpa")
    verdict = judge(pair.reference(case, "sdpa"), found, tier="torch", dtype="bfloat16", bitwise=False)
    assert verdict.ok, verdict.deviating


EXPECTED = {
    "llama": ("add_rms_norm", "linear_add", "rope_into_cache"),
    "qwen3": ("add_rms_norm", "linear_add", "qk_norm_rope", "rope_into_cache"),
    "phi3": ("add_rms_norm", "linear_add"),
    "gemma3": ("add_rms_norm", "qk_norm_rope", "rope_into_cache"),
    "mixtral": ("add_rms_norm", "moe", "softmax_top_k"),
    "qwen2_moe": ("add_rms_norm", "moe", "softmax_top_k", "rope_into_cache"),
    "qwen3_moe": ("add_rms_norm", "moe", "softmax_top_k", "qk_norm_rope", "rope_into_cache"),
    "deepseek_v3": ("add_rms_norm", "moe", "linear_add", "router_logits", "grouped_top_k"),
    "gpt_oss": ("clamped_moe", "top_k_softmax"),
}


@pytest.mark.parametrize("architecture", EXPECTED)
def test_the_fused_paths_are_taken(architecture: str, everything_on: None) -> None:
    amd_ops.reset_counters()
    pair = twins.pair(architecture, "float32")
    for case in ("prefill",) if architecture == "deepseek_v3" else ("prefill", "static-cache"):
        pair.found(case, how(architecture))
    report = amd_ops.report()
    idle = [op for op in EXPECTED[architecture] if not report.calls(op, "torch")]
    assert idle == [], str(report)


# -- hooks

LAYER = "model.layers.1"
HOOKED = [
    ("llama", ("", "post_attention_layernorm", "self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj", "mlp.act_fn")),
    ("qwen3", ("self_attn.q_norm", "self_attn.k_norm", "self_attn.v_proj")),
    ("phi3", ("resid_attn_dropout", "resid_mlp_dropout", "mlp.gate_up_proj")),
    ("gemma3", ("pre_feedforward_layernorm", "post_feedforward_layernorm")),
    ("mixtral", ("block_sparse_moe", "block_sparse_moe.gate", "block_sparse_moe.experts.2")),
    ("qwen3_moe", ("mlp.experts.1.up_proj", "mlp.experts.0.act_fn")),
    ("gpt_oss", ("mlp", "mlp.experts", "mlp.router")),
]


def doubled(module: nn.Module, arguments: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (output[0] * 1.5, *output[1:])
    return output * 1.5


@pytest.mark.parametrize(
    ("architecture", "place"), [(architecture, place) for architecture, places in HOOKED for place in places]
)
@pytest.mark.filterwarnings("ignore::amd_ops.DeclinedWarning")
def test_a_hook_on_any_module_is_honoured(architecture: str, place: str, everything_on: None) -> None:
    """Set on a model that has run fused: the hook must see the module's own output, and change it."""
    pair = twins.new_pair(architecture, "float32")
    pair.set_implementation(how(architecture))
    pair.found("prefill", how(architecture))
    plain = CASES["prefill"].run(pair.stock, twins.INPUTS)
    seen: list[list[torch.Tensor]] = []
    for model in (pair.stock, pair.overlay):
        kept: list[torch.Tensor] = []
        module = model.get_submodule(f"{LAYER}.{place}".rstrip("."))
        module.register_forward_hook(
            lambda module, arguments, output, kept=kept: kept.append(
                (output[0] if isinstance(output, tuple) else output).detach().clone()
            )
        )
        module.register_forward_hook(doubled)
        seen.append(kept)
    reference = CASES["prefill"].run(pair.stock, twins.INPUTS)
    assert not torch.allclose(reference["logits"], plain["logits"]), "the hook changes nothing: the test is empty"
    found = CASES["prefill"].run(pair.overlay, twins.INPUTS)
    verdict = judge(reference, found, tier="torch", dtype="float32", bitwise=False)
    assert verdict.ok, verdict.deviating
    assert len(seen[0]) == len(seen[1]) > 0
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# -- planted faults


def no_residual_in_the_norm(norm: Any, x: torch.Tensor, residual: torch.Tensor, **_: Any) -> Any:
    return norm(x), residual + x


def residual_lost_at_the_norm(norm: Any, x: torch.Tensor, residual: torch.Tensor) -> Any:
    return norm(residual + x), x


def norm_of_the_other_form(norm: Any, x: torch.Tensor, residual: torch.Tensor) -> Any:
    weight, eps, form = type(norm).forward._amd_rms_norm
    other = "gemma" if form == "llama" else "llama"
    return amd_ops.add_rms_norm(x, residual, getattr(norm, weight), getattr(norm, eps), form=other)


def no_residual_at_the_mlp(
    mlp: Any, x: torch.Tensor, residual: torch.Tensor, owned: bool = False, **_: Any
) -> torch.Tensor:
    return mlp(x)


def residual_twice(mlp: Any, x: torch.Tensor, residual: torch.Tensor, owned: bool = False, **_: Any) -> torch.Tensor:
    return mlp(x) + residual * 2


def head_norms_left_out(attn: Any, cache: Any = None, position: Any = None, norms: bool = False, **_: Any) -> Any:
    plan = rope_file.Rotation(cache, None, position, None)
    return plan if norms else None


def key_not_rotated_after_its_norm(q: Any, k: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
    rotated, _ = REAL["qk_norm_rope"](q, k, *rest, **kwargs)
    return rotated, amd_ops.rms_norm(k, rest[1], rest[2], **kwargs)


def one_slot_early(*args: Any, **kwargs: Any) -> torch.Tensor:
    *rest, position = args
    return REAL["rope_into_cache"](*rest, (position - 1).clamp(min=0), **kwargs)


def key_not_rotated(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: Any, sin: Any, *rest: Any, **kw: Any
) -> Any:
    out = REAL["rope_into_cache"](q, k, v, cos, sin, *rest, **kw)
    rest[0].index_copy_(2, rest[2], k)
    return out


def experts_swapped(
    hidden: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, *rest: Any, **kwargs: Any
) -> torch.Tensor:
    return REAL["moe"](hidden, w1.flip(0), w2.flip(0), *rest, **kwargs)


def gate_and_up_swapped(hidden: torch.Tensor, w1: torch.Tensor, *rest: Any, **kwargs: Any) -> torch.Tensor:
    gate, up = w1.chunk(2, 1)
    return REAL["moe"](hidden, torch.cat((up, gate), 1), *rest, **kwargs)


def one_expert_of_k(hidden: torch.Tensor, w1: Any, w2: Any, weight: Any, ids: Any, **kwargs: Any) -> torch.Tensor:
    return REAL["moe"](hidden, w1, w2, weight[:, :1], ids[:, :1], **kwargs)


def router_not_normalised(logits: torch.Tensor, top_k: int, **kwargs: Any) -> Any:
    return REAL["softmax_top_k"](logits, top_k, **{**kwargs, "renormalise": False})


def router_normalised(logits: torch.Tensor, top_k: int, **kwargs: Any) -> Any:
    return REAL["softmax_top_k"](logits, top_k, **{**kwargs, "renormalise": True})


def no_biases(hidden: Any, gate_up: Any, gate_up_bias: Any, down: Any, down_bias: Any, *rest: Any, **kw: Any) -> Any:
    zero = torch.zeros_like
    return REAL["clamped_moe"](hidden, gate_up, zero(gate_up_bias), down, zero(down_bias), *rest, **kw)


def groups_not_normalised(*args: Any) -> Any:
    return REAL["grouped_router"](*args[:6], False, *args[7:])


def weights_of_the_wrong_experts(logits: torch.Tensor, top_k: int, spread: bool) -> Any:
    weights, ids = REAL["top_k_router"](logits, top_k, spread)
    return weights.flip(-1), ids


REAL: dict[str, Callable[..., Any]] = {
    name: getattr(amd_ops, name)
    for name in (
        "qk_norm_rope", "rope_into_cache", "moe", "softmax_top_k", "clamped_moe", "grouped_router", "top_k_router",
    )
}  # fmt: skip
FAULTS: list[tuple[str, Any, str, Callable[..., Any], str, str]] = [
    ("residual not normed", amd_ops, "add_norm", no_residual_in_the_norm, "llama", "prefill"),
    ("residual lost", amd_ops, "add_norm", residual_lost_at_the_norm, "qwen3", "prefill"),
    ("llama norm as gemma", amd_ops, "add_norm", norm_of_the_other_form, "llama", "prefill"),
    ("gemma norm as llama", amd_ops, "add_norm", norm_of_the_other_form, "gemma3", "prefill"),
    ("residual dropped at the MLP", amd_ops, "mlp_add", no_residual_at_the_mlp, "llama", "prefill"),
    ("residual added twice", amd_ops, "mlp_add", residual_twice, "mistral", "decode"),
    ("head norms left out", amd_ops, "qk_rope", head_norms_left_out, "qwen3", "prefill"),
    ("key not rotated", rope_file, "qk_norm_rope", key_not_rotated_after_its_norm, "qwen3", "prefill"),
    ("cache written one slot early", rope_file, "rope_into_cache", one_slot_early, "llama", "static-cache"),
    ("key in the cache not rotated", rope_file, "rope_into_cache", key_not_rotated, "qwen3", "static-cache"),
    ("experts in another order", experts_file, "moe", experts_swapped, "mixtral", "prefill"),
    ("gate and up swapped in experts", experts_file, "moe", gate_and_up_swapped, "qwen3_moe", "prefill"),
    ("one expert instead of k", experts_file, "moe", one_expert_of_k, "deepseek_v3", "prefill"),
    ("router not normalised", experts_file, "softmax_top_k", router_not_normalised, "mixtral", "prefill"),
    ("router normalised against its config", experts_file, "softmax_top_k", router_normalised, "qwen2_moe", "prefill"),
    ("choice in groups not normalised", amd_ops, "grouped_router", groups_not_normalised, "deepseek_v3", "prefill"),
    ("weights of the wrong experts", amd_ops, "top_k_router", weights_of_the_wrong_experts, "gpt_oss", "prefill"),
    ("expert biases dropped", stacked_file, "clamped_moe", no_biases, "gpt_oss", "prefill"),
]


@pytest.mark.parametrize(
    ("owner", "name", "fault", "architecture", "case"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_every_fault_is_seen(
    owner: Any,
    name: str,
    fault: Callable[..., Any],
    architecture: str,
    case: str,
    everything_on: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = twins.pair(architecture, "float32")
    reference = pair.reference(case, how(architecture))

    def ok() -> bool:
        found = pair.found(case, how(architecture))
        return judge(reference, found, tier="torch", dtype="float32", bitwise=False).ok

    assert ok(), "the case fails without a fault"
    monkeypatch.setattr(owner, name, fault)
    assert not ok()
