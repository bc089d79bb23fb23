"""Training steps of whole models in tier triton; tests/triton/test_interpreter.py runs this in the full suite."""

from __future__ import annotations

import pytest
import torch

import amd_ops
from tests.parity import gradients
from tests.parity.test_gradients import BATCHES

SIZE = {"layers": 2, "length": 9}
RUNS = [(a, b) for a in gradients.ARCHITECTURES for b in BATCHES.get(a, ("plain", "padded", "packed"))]
# bert and vit have layer norms and a GELU that is not gated: there is nothing for these kernels to do.
NOTHING = ("bert", "vit")


@pytest.mark.parametrize(("architecture", "batch"), RUNS)
def test_gradients_are_as_near_as_stocks(architecture: str, batch: str) -> None:
    toggles = dict.fromkeys(("use_optimized_ops", "use_fused_projections", "use_fused_cross_entropy"), 1)
    with amd_ops.override(**toggles, tiers="triton,torch,eager"):
        amd_ops.reset_counters()
        single = gradients.overlay(architecture, batch, torch.float32, **SIZE)
        half = gradients.overlay(architecture, batch, torch.bfloat16, **SIZE)
        rows = [tier for row in amd_ops.report().as_dict()["ops"] for tier in row["tiers"] if tier["tier"] == "triton"]
        loss = amd_ops.report().calls("linear_cross_entropy", "triton")
    assert (sum(row["calls"] for row in rows) > 0) is (loss > 0) is (architecture not in NOTHING)
    right = gradients.stock(architecture, batch, torch.float64, **SIZE)
    assert gradients.worst(single, gradients.stock(architecture, batch, torch.float32, **SIZE), right)[0] <= 1e-5
    stock = gradients.distance(gradients.stock(architecture, batch, torch.bfloat16, **SIZE), right)
    ratio = gradients.distance(half, right) / stock
    print(f"{architecture} {batch}: {ratio:.2f} of stock's own distance in bf16")
    assert ratio <= 1.5
