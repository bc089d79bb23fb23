"""Whole models in bfloat16 through tier aiter, against stock: which kernels ran, and what came out."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from rocm_overlay.verify.cases import CASES, Inputs
from rocm_overlay.verify.compare import difference, judge

import amd_ops
from amd_ops.backends.aiter.attention import MASKED_DECODE
from examples.tiny_models import ARCHITECTURES
from tests.aiter.support import ON, declined
from tests.doubles.aiter import Double, fake_aiter
from tests.parity import twins

ALL: dict[str, object] = {**ON, "use_fused_projections": 1}
MODELS = ARCHITECTURES
IMPLEMENTATION = {"gemma2": "eager"}  # its soft cap exists in eager attention only
TAKEN = ["prefill", "decode", "chunked", "padded", "greedy", "greedy-left-padded", "static-cache", "beam"]
# Mixtral's beams lie so close that bfloat16 picks others; the beams of the dense models stay the same.
RUNS = [(model, case) for model in MODELS for case in TAKEN if (model, case) != ("mixtral", "beam")]
TARGETS = [("v0.1.9.post1", "gfx942", 304), ("v0.1.20.post1", "gfx950", 256)]
MARGIN = 2.0
"""A right aiter is to pass with room: its errors are at most this part of what is allowed."""
ATTENTION = {"mha_fwd", "mha_varlen_fwd", "fmha_v3_fwd", "fmha_v3_varlen_fwd"}
BACKWARD = {"mha_bwd", "mha_varlen_bwd", "fmha_v3_bwd", "fmha_v3_varlen_bwd"}


@pytest.fixture(params=TARGETS, ids=lambda target: "-".join(map(str, target)))
def double(request: pytest.FixtureRequest) -> Iterator[Double]:
    with fake_aiter(*request.param) as installed:
        amd_ops.reset_counters()
        yield installed


@functools.cache
def _pair(architecture: str, dtype: str) -> twins.Pair:
    """Mixtral uses all its experts in bfloat16: a router's choice of two flips at near ties, by rounding alone."""
    if architecture == "mixtral" and dtype == "bfloat16":
        return twins.new_pair(architecture, dtype, num_experts_per_tok=4)
    return twins.pair(architecture, dtype)


def _run(architecture: str, case: str, dtype: str = "bfloat16", **toggles: Any) -> list[Any]:
    """What deviates from stock."""
    pair, how = _pair(architecture, dtype), IMPLEMENTATION.get(architecture, "sdpa")
    reference = pair.reference(case, how)
    try:
        # aiter's experts read shuffled weights and nothing else; prepare() makes them and freezes the plain ones.
        shuffled = {"use_preshuffle": 1} if architecture == "mixtral" else {}
        with amd_ops.override(**{**ALL, **shuffled, **toggles}):
            if shuffled:
                amd_ops.prepare(pair.overlay)
            found = pair.found(case, how)
    finally:
        amd_ops.restore(pair.overlay)
    return list(judge(reference, found, tier="aiter", dtype=dtype, bitwise=False).deviating)


@pytest.mark.parametrize(("architecture", "case"), RUNS)
def test_every_op_runs_in_tier_aiter_and_agrees_with_stock(double: Double, architecture: str, case: str) -> None:
    old_gemma = architecture.startswith("gemma") and double.version == "v0.1.9.post1"  # no gemma_norm there
    with pytest.warns(amd_ops.DeclinedWarning, match="gemma_norm") if old_gemma else contextlib.nullcontext():
        assert _run(architecture, case, strict=not old_gemma) == [], str(amd_ops.report())
    for row in amd_ops.report().as_dict()["ops"]:
        lower = sum(tier["calls"] for tier in row["tiers"] if tier["tier"] in ("torch", "eager"))
        # Head norms with rope, and rope into a static cache, have no kernel in aiter: they are tier triton's.
        served = any(tier["tier"] == "aiter" for tier in row["tiers"])
        if served and not (old_gemma and row["op"] in ("rms_norm", "add_rms_norm")):
            masked = sum(entry["calls"] for tier in row["tiers"][:1] for entry in _masked_decodes(tier))
            assert lower == masked, f"{row['op']} left tier aiter:\n{amd_ops.report()}"
    assert ATTENTION & set(double.kernels())


def _masked_decodes(tier: dict[str, Any]) -> list[dict[str, Any]]:
    """Single queries under a mask, which are SDPA's."""
    return [entry for entry in tier["declined"] if entry["reason"] == MASKED_DECODE]


@pytest.mark.parametrize("case", ["packed", "hidden-states"])
@pytest.mark.parametrize("architecture", MODELS)
def test_what_aiter_cannot_do_is_done_right_by_another_tier(double: Double, architecture: str, case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", amd_ops.DeclinedWarning)
        assert _run(architecture, case) == [], str(amd_ops.report())
    reasons = declined("attention") + declined("route_attention", "routed")
    assert bool(reasons) is (case == "packed"), reasons


def test_kernels_of_a_llama_layer(double: Double) -> None:
    """9 launches a layer: two norms, q/k/v, rope, attention, o, gate/up, activation, down; norm and head at the end."""
    _run("llama", "prefill")
    double.clear()
    _run("llama", "prefill")
    layers = _pair("llama", "bfloat16").stock.config.num_hidden_layers
    counted = Counter(double.kernels())
    families = {
        "attention": sum(counted[name] for name in ATTENTION),
        "linear": counted["gemm_a16w16"],
        "activation": counted["silu_and_mul"],
        "rope": sum(count for name, count in counted.items() if name.startswith("rope_")),
        "norm": sum(count for name, count in counted.items() if "norm" in name),
    }
    expected = {"attention": 1, "linear": 4, "activation": 1, "rope": 1, "norm": 2}
    assert families == {name: count * layers + (name in ("norm", "linear")) for name, count in expected.items()}
    assert sum(families.values()) == sum(counted.values())


def test_long_prompts_with_real_heads_take_the_asm_kernels(double: Double) -> None:
    """head_dim 128 and more than 128 rows: dense without padding, packed with it; decode goes back to CK."""
    pair = twins.new_pair("llama", "bfloat16", head_dim=128)
    inputs = Inputs.seeded(128, length=140, new_tokens=2)
    for case, kernel in (("prefill", "fmha_v3_fwd"), ("padded", "fmha_v3_varlen_fwd"), ("greedy", "fmha_v3_fwd")):
        reference = CASES[case].run(pair.stock, inputs)
        double.clear()
        with amd_ops.override(**ALL, strict=1):
            found = CASES[case].run(pair.overlay, inputs)
        verdict = judge(reference, found, tier="aiter", dtype="bfloat16", bitwise=False)
        assert verdict.deviating == (), case
        numbers = [n for n in reference if n.startswith("logits")]
        worst = max(difference(n, reference[n], found[n]).max_rel for n in numbers)
        if case != "greedy":  # whose logits end at the first token that differs
            assert worst <= verdict.allowed / MARGIN, f"{case}: {worst:.4f} of {verdict.allowed:.4f}"
        assert kernel in double.kernels()
        assert ("mha_fwd" in double.kernels()) is (case == "greedy")


def test_left_padding_reaches_the_varlen_kernel(double: Double) -> None:
    _run("llama", "greedy-left-padded")
    assert "mha_varlen_fwd" in double.kernels()


def test_gemma2_soft_cap_reaches_the_kernel(double: Double) -> None:
    _run("gemma2", "prefill")
    double.clear()
    _run("gemma2", "prefill")
    caps = {call["logits_soft_cap"] for call in double.called("mha_varlen_fwd", "op")}
    assert caps == {3.0}


@pytest.mark.parametrize("architecture", MODELS)
def test_float32_declines_everywhere_and_gives_stock_tokens(double: Double, architecture: str) -> None:
    with pytest.warns(amd_ops.DeclinedWarning, match="float32"):
        assert _run(architecture, "greedy-left-padded", "float32") == []
    assert double.kernels() == []


@pytest.mark.parametrize("case", ["training-step", "padded-training-step", "gradient-checkpointing"])
@pytest.mark.parametrize("architecture", MODELS)
def test_training_takes_the_attention_and_gives_stock_gradients(double: Double, architecture: str, case: str) -> None:
    """Elementwise ops have no backward in aiter, and no Triton runs here. Gemma2 trains on eager attention alone."""
    with pytest.warns(amd_ops.DeclinedWarning, match="grad"):
        assert _run(architecture, case) == []
    kernels = set(double.kernels())
    assert kernels <= ATTENTION | BACKWARD | {"gemm_a16w16"}  # the forward of packed projections
    assert bool(kernels & BACKWARD) is (architecture != "gemma2")
