"""Law 1: with every toggle off an overlaid model gives every bit that stock gives."""

from __future__ import annotations

import pytest
from rocm_overlay.verify.compare import judge

import amd_ops
from examples.tiny_models import ARCHITECTURES
from tests.parity import twins

SITES = ("rms_norm", "rope", "qkv", "attention", "gated_mlp", "linear")


def test_no_site_is_on_when_no_toggle_is_set() -> None:
    assert not any(getattr(amd_ops.on, site) for site in SITES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_twin_is_the_overlaid_text(architecture: str) -> None:
    module = twins.overlay_module(architecture)
    assert module.__amd_overlay__.startswith("sha256:")
    assert module._amd is amd_ops
    assert type(twins.pair(architecture, "float32").overlay).__module__ == module.__name__


@pytest.mark.parametrize(("implementation", "case"), twins.RUNS)
@pytest.mark.parametrize("dtype", twins.DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_off_is_bit_equal_to_stock(architecture: str, dtype: str, implementation: str, case: str) -> None:
    pair = twins.pair(architecture, dtype)
    reference = pair.reference(case, implementation)
    assert reference, "the case compares nothing"
    verdict = judge(reference, pair.found(case, implementation), tier="off", dtype=dtype, bitwise=True)
    assert verdict.ok, verdict.deviating


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_comparison_sees_a_changed_weight(architecture: str) -> None:
    """Were cases or models degenerate, equality would prove nothing: every case must notice one changed weight."""
    pair = twins.new_pair(architecture, "float32")
    shared = twins.pair(architecture, "float32")
    layer = pair.overlay.model.layers[0]
    layer.input_layernorm.weight.data[3] += 0.5
    for case in ("prefill", "decode", "chunked", "padded", "packed", "training-step", "hidden-states"):
        verdict = judge(
            shared.reference(case, "sdpa"), pair.found(case, "sdpa"), tier="torch", dtype="float32", bitwise=False
        )
        assert not verdict.ok, case
