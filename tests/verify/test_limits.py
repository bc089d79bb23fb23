"""AMD_OPS_STOCK and AMD_OPS_OP_TIERS: single switches and ops held back, by hand or by a profile."""

from __future__ import annotations

import pytest
import torch

import amd_ops


def test_a_switch_at_stock_stays_off_and_the_others_go_on() -> None:
    with amd_ops.override(use_optimized_ops=1, stock="rope, gated_mlp"):
        assert amd_ops.on.rms_norm
        assert not amd_ops.on.rope
        assert not amd_ops.on.gated_mlp
        assert "left to stock's expressions: rope, gated_mlp" in str(amd_ops.report())
    with amd_ops.override(use_optimized_ops=1):
        assert amd_ops.on.rope


def test_an_op_keeps_to_its_tiers_and_says_so() -> None:
    args = torch.ones(2, 8), torch.ones(8), 1e-6
    amd_ops.reset_counters()
    with amd_ops.override(use_optimized_ops=1, op_tiers="rms_norm=eager"):
        amd_ops.rms_norm(*args)
        assert amd_ops.report().calls("rms_norm", "eager") == 1
        verdict = next(v for v in amd_ops.explain("rms_norm", *args).verdicts if v.tier == "torch")
        assert verdict.reason == "the profile or AMD_OPS_OP_TIERS leaves it out"
    assert amd_ops.settings().tiers_of("rms_norm") == amd_ops.settings().tiers


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"stock": "nothing"}, "AMD_OPS_STOCK names 'nothing'"),
        ({"op_tiers": "rms_norm"}, "AMD_OPS_OP_TIERS has 'rms_norm'"),
        ({"op_tiers": "rms_norm=cuda"}, "AMD_OPS_OP_TIERS has 'rms_norm=cuda'"),
    ],
)
def test_limits_that_mean_nothing(limits: dict[str, str], said: str) -> None:
    with pytest.raises(amd_ops.ToggleError, match=said), amd_ops.override(**limits):
        pytest.fail("entered")
