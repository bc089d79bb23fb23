"""accelerate's device_map with parts on the CPU and on disk: its hooks bring weights in for one forward at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rocm_overlay.verify.cases import CASES
from rocm_overlay.verify.compare import judge

import amd_ops
from examples.tiny_models import save_tiny
from tests.parity import twins
from tests.ranks.worker import ON

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")

MAPS: dict[str, Any] = {
    "half on disk": {
        "model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
        "model.norm": "disk", "lm_head": "cpu",
    },
    "layers on disk": {
        "model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers": "disk", "model.norm": "cpu",
        "lm_head": "cpu",
    },
    "one device": {"": "cpu"},
}  # fmt: skip
CASE_NAMES = ("prefill", "decode", "greedy-left-padded", "static-cache")


@pytest.fixture(autouse=True)
def toggles_from_nowhere() -> Any:
    """Leave no toggles behind."""
    yield
    amd_ops.refresh()


def spread(model_class: Any, saved: Path, placing: str, folder: Path) -> Any:
    """Load as a user with too little memory does."""
    return model_class.from_pretrained(saved, device_map=MAPS[placing], offload_folder=folder).eval()


def outputs(model: Any) -> dict[str, Any]:
    return {name: CASES[name].run(model, twins.INPUTS) for name in CASE_NAMES}


@pytest.mark.parametrize("placing", MAPS)
@pytest.mark.parametrize("architecture", ["qwen3", pytest.param("llama", marks=pytest.mark.full)])
def test_a_spread_model_equals_stock(architecture: str, placing: str, tmp_path: Path) -> None:
    saved = save_tiny(architecture, tmp_path / "saved")
    stock = twins.causal_class(twins.stock_module(architecture))
    alone = outputs(stock.from_pretrained(saved).eval())
    references = outputs(spread(stock, saved, placing, tmp_path / "stock"))
    model = spread(twins.causal_class(twins.overlay_module(architecture)), saved, placing, tmp_path / "overlay")
    assert ("disk" in MAPS[placing].values()) == any(p.is_meta for p in model.parameters())
    for title, toggles in (("off", {}), ("on", ON), ("off again", {})):
        amd_ops.reset_counters()
        with amd_ops.override(**toggles):
            found = outputs(model)
            report = amd_ops.report()
        for name, reference in references.items():
            off = title != "on"
            verdict = judge(reference, found[name], tier="off" if off else "torch", dtype="float32", bitwise=off)
            assert verdict.ok, (title, name, verdict.deviating)
            assert judge(alone[name], found[name], tier="torch", dtype="float32", bitwise=False).ok, (title, name)
        if title == "on":
            fused, declined = report.calls("qkv_proj", "fused"), report.calls("qkv_proj", "stock")
            assert (fused > 0) == (placing == "one device"), report
            assert (declined > 0) == (placing != "one device"), report


def test_offloading_a_model_that_is_packed_already(tmp_path: Path) -> None:
    """cpu_offload takes the weights away from under the packed matrix; every call after that must notice."""
    saved = save_tiny("qwen3", tmp_path / "saved")
    stock = twins.causal_class(twins.stock_module("qwen3")).from_pretrained(saved).eval()
    model = twins.causal_class(twins.overlay_module("qwen3")).from_pretrained(saved).eval()
    with amd_ops.override(**ON):
        assert amd_ops.prepare(model).fused
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        amd_ops.reset_counters()
        verdict = judge(
            CASES["prefill"].run(stock, twins.INPUTS), CASES["prefill"].run(model, twins.INPUTS),
            tier="torch", dtype="float32", bitwise=False,
        )  # fmt: skip
        assert verdict.ok, verdict.deviating
        assert amd_ops.report().calls("qkv_proj", "fused") == 0
