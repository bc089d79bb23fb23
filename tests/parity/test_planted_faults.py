"""Faults planted under the overlaid forwards: the cases must see each of them, or passing them proves little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rocm_overlay.verify.compare import judge

import amd_ops
from amd_ops import plans
from tests.parity import twins

ON = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}
Fault = Callable[..., Any]


def norm_without_weight(x: torch.Tensor, weight: torch.Tensor, eps: float, *, form: str = "llama") -> torch.Tensor:
    return REAL["rms_norm"](x, torch.full_like(weight, 1.0 if form == "llama" else 0.0), eps, form=form)


def norm_in_the_other_form(x: torch.Tensor, weight: torch.Tensor, eps: float, *, form: str = "llama") -> torch.Tensor:
    return REAL["rms_norm"](x, weight, eps, form="llama")


def rope_of_the_query_only(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return REAL["apply_rope"](q, k, *rest)[0], k


def rope_interleaved(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axis: int = 1) -> Any:
    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        return x * cos.unsqueeze(axis) + pairs * sin.unsqueeze(axis)

    return turned(q), turned(k)


def key_and_value_swapped(attn: Any, x: torch.Tensor, *rest: Any) -> Any:
    q, k, v = REAL["qkv_proj"](attn, x, *rest)
    return q, v, k


def bias_dropped_from_qkv(attn: Any, x: torch.Tensor, *rest: Any) -> Any:
    return tuple(F.linear(x, getattr(attn, name).weight) for name in ("q_proj", "k_proj", "v_proj"))


def gate_and_up_swapped(mlp: Any, x: torch.Tensor, **names: Any) -> torch.Tensor:
    return mlp.down_proj(mlp.act_fn(mlp.up_proj(x)) * mlp.gate_proj(x))


def gelu_for_silu(mlp: Any, x: torch.Tensor, **names: Any) -> torch.Tensor:
    return mlp.down_proj(F.gelu(mlp.gate_proj(x)) * mlp.up_proj(x))


def exact_gelu_for_tanh_gelu(mlp: Any, x: torch.Tensor, **names: Any) -> torch.Tensor:
    return mlp.down_proj(F.gelu(mlp.gate_proj(x)) * mlp.up_proj(x))


def bias_dropped_from_linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, module.weight)


def attention_with(**changes: Any) -> Fault:
    """A route that calls our op with something changed: ``softcap``, ``mask``, ``heads`` or ``causal``."""

    def route(module: Any, stock: Any) -> Any:
        def interface(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: Any = None, **kwargs: Any) -> Any:
            if changes.get("heads"):
                k, v = (x.repeat(1, module.num_key_value_groups, 1, 1) for x in (k, v))
            causal = mask is None and q.shape[2] > 1
            if changes.get("causal") == "top-left":
                mask, causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()[None, None], False
            if changes.get("mask") == "dropped":
                mask, causal = None, q.shape[2] > 1
            if changes.get("mask") == "window one longer" and mask is not None and mask.shape[3] > 1:
                shifted = F.pad(mask[..., 1:], (0, 1), value=mask.min().item() if mask.is_floating_point() else False)
                mask = torch.maximum(mask, shifted) if mask.is_floating_point() else mask | shifted
                own = torch.ones(mask.shape[2:], dtype=torch.bool).tril(mask.shape[3] - mask.shape[2])
                mask = (
                    mask & own if not mask.is_floating_point() else mask.masked_fill(~own, torch.finfo(mask.dtype).min)
                )
            softcap = None if "softcap" in changes else kwargs.get("softcap")
            return (
                amd_ops.attention(
                    *(x.transpose(1, 2) for x in (q, k, v)),
                    scaling=scaling, is_causal=causal, attention_mask=mask, softcap=softcap,
                ),
                None,
            )  # fmt: skip

        return interface

    return route


REAL: dict[str, Any] = {name: getattr(amd_ops, name) for name in ("rms_norm", "apply_rope", "qkv_proj")}

LEFT = attention_with(causal="top-left")
NO_MASK = attention_with(mask="dropped")
LONG_WINDOW = attention_with(mask="window one longer")

# What is wrong, the name that overlaid files call, the fault, an architecture that has the feature, cases.
FAULTS: list[tuple[str, str, Fault, str, tuple[str, ...]]] = [
    ("norm weight ignored", "rms_norm", norm_without_weight, "llama", ("prefill", "greedy")),
    ("1 + w missing", "rms_norm", norm_in_the_other_form, "gemma", ("prefill", "greedy")),
    ("key not rotated", "apply_rope", rope_of_the_query_only, "llama", ("prefill", "decode")),
    ("rope interleaved", "apply_rope", rope_interleaved, "mistral", ("prefill", "decode")),
    ("key and value swapped", "qkv_proj", key_and_value_swapped, "llama", ("prefill",)),
    ("projection bias dropped", "qkv_proj", bias_dropped_from_qkv, "qwen2", ("prefill",)),
    ("gate and up swapped", "gated_mlp", gate_and_up_swapped, "llama", ("prefill",)),
    ("activation swapped", "gated_mlp", gelu_for_silu, "qwen3", ("prefill",)),
    ("exact for tanh gelu", "gated_mlp", exact_gelu_for_tanh_gelu, "gemma", ("prefill",)),
    ("output bias dropped", "apply_linear", bias_dropped_from_linear, "qwen3", ("prefill",)),
    ("causality from the first key", "route_attention", LEFT, "llama", ("decode", "chunked")),
    ("padding dropped", "route_attention", NO_MASK, "llama", ("padded", "greedy-left-padded")),
    ("packing dropped", "route_attention", NO_MASK, "llama", ("packed",)),
    ("static cache read beyond", "route_attention", NO_MASK, "llama", ("static-cache",)),
    ("window dropped", "route_attention", NO_MASK, "mistral", ("prefill",)),
    ("window one too long", "route_attention", LONG_WINDOW, "phi3", ("prefill", "chunked")),
    ("kv heads dealt out wrongly", "route_attention", attention_with(heads="tiled"), "mixtral", ("prefill", "decode")),
    ("soft cap ignored", "route_attention", attention_with(softcap=None), "gemma2", ("prefill", "decode")),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_plan_outlives_a_fault() -> Iterator[None]:
    """The pairs are the session's: no plan of theirs may be without the fault of a test, or keep it."""
    plans.forget()
    yield
    plans.forget()


def plant(monkeypatch: pytest.MonkeyPatch, name: str, fault: Fault) -> None:
    """Put a fault where the model will run it: a planned decode step attends by itself and asks no route."""
    monkeypatch.setattr(amd_ops, name, fault)
    if name == "route_attention":

        def kernel(maker: Any, attention: Any) -> Any:
            def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: Any) -> torch.Tensor:
                module, mask = attention.module(), state.mask
                result: torch.Tensor = fault(module, None)(module, q, k, v, mask, scaling=attention.scaling)[0]
                return result.contiguous()

            return attend

        monkeypatch.setattr(plans.steps, "_kernel", kernel)
    plans.forget()


def planned_steps() -> int:
    """How many decode steps ran by a plan since the counters were reset."""
    rows = [row for row in amd_ops.report().as_dict()["ops"] if row["op"] == "decode_plan"]
    return sum(tier["calls"] for row in rows for tier in row["tiers"] if tier["tier"] == "planned")


def all_cases_ok(architecture: str, cases: tuple[str, ...]) -> list[bool]:
    pair = twins.pair(architecture, "float32")
    how = "eager" if architecture == "gemma2" else "sdpa"
    return [
        judge(pair.reference(case, how), pair.found(case, how), tier="torch", dtype="float32", bitwise=False).ok
        for case in cases
    ]


@pytest.mark.parametrize(
    ("name", "fault", "architecture", "cases"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_every_case_sees_the_fault(
    name: str, fault: Fault, architecture: str, cases: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with amd_ops.override(tiers="torch,eager", **ON):
        assert all(all_cases_ok(architecture, cases)), "the cases fail without a fault"
        plant(monkeypatch, name, fault)
        if name == "gated_mlp":  # a layer whose last sum is fused asks for both at once
            monkeypatch.setattr(amd_ops, "mlp_add", lambda mlp, x, residual, *_, **__: residual + fault(mlp, x))
        seen = [not ok for ok in all_cases_ok(architecture, cases)]
    amd_ops.restore(twins.pair(architecture, "float32").overlay)
    assert all(seen), dict(zip(cases, seen, strict=True))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_the_fault_harness_without_a_fault_is_right(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The route that carries the attention faults must itself be right, or it would be seen for the wrong reason."""
    with amd_ops.override(tiers="torch,eager", **ON):
        plant(monkeypatch, "route_attention", attention_with())
        amd_ops.reset_counters()
        assert all(all_cases_ok(architecture, ("prefill", "decode", "chunked", "padded", "packed", "static-cache")))
        if architecture == "llama":
            assert planned_steps(), "no plan ran: its own attention was not planted in"
    amd_ops.restore(twins.pair(architecture, "float32").overlay)


# tanh-gelu and gelu differ by less than bfloat16 shows: only float32 sees that fault.
IN_BFLOAT16 = [fault for fault in FAULTS if fault[0] != "exact for tanh gelu"]


@pytest.mark.parametrize(
    ("name", "fault", "architecture", "cases"), [f[1:] for f in IN_BFLOAT16], ids=[f[0] for f in IN_BFLOAT16]
)
def test_what_is_allowed_where_kernels_cut_hides_no_fault(
    name: str, fault: Fault, architecture: str, cases: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiter runs in half precision only, and on gfx942 more is allowed there."""
    pair = twins.pair(architecture, "bfloat16")
    how = "eager" if architecture == "gemma2" else "sdpa"
    monkeypatch.setattr(amd_ops, name, fault)
    with amd_ops.override(tiers="torch,eager", stock="mlp_add", **ON):
        found = pair.found(cases[0], how)
    amd_ops.restore(pair.overlay)
    reference = pair.reference(cases[0], how)
    assert not judge(reference, found, tier="aiter", dtype="bfloat16", bitwise=False, arch="gfx942").ok
