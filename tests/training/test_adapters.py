"""Adapters of PEFT on an overlaid model: the gradients of its parts are stock's, and what is plain is still packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import amd_ops
from tests.parity import twins

from .test_models import OFF, apart, clean, loss_of
from .test_tools import ON, calls

__all__ = ["clean"]  # a fixture of this file, too
pytestmark = pytest.mark.filterwarnings("ignore::amd_ops.DeclinedWarning", "ignore::FutureWarning")
peft = pytest.importorskip("peft")
QV = ["q_proj", "v_proj"]


def lora(**more: Any) -> Any:
    return peft.LoraConfig(r=4, target_modules=QV, init_lora_weights=False, **more)


ADAPTERS: dict[str, tuple[Any, str]] = {
    "LoRA": (lora(), "lora_"),
    "LoRA with dropout": (lora(lora_dropout=0.3), "lora_"),
    "DoRA": (lora(use_dora=True), "lora_"),
    "IA3": (
        peft.IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
        ),
        "ia3_",
    ),
    "an embedding and a head beside LoRA": (lora(modules_to_save=["embed_tokens", "lm_head"]), ""),
}
"""By name: the adapter, and what its parameters are called."""


@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_of_adapters_are_stocks(name: str) -> None:
    config, called = ADAPTERS[name]
    pair = twins.new_pair("llama", "float32")
    found = []
    for model, toggles in ((pair.stock, OFF), (pair.overlay, ON)):
        torch.manual_seed(1)
        tuned = peft.get_peft_model(model.train(), config)
        torch.manual_seed(2)
        with amd_ops.override(**toggles):
            loss_of(tuned).backward()
        found.append({name: one.grad for name, one in tuned.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert found[0]
    assert all(called in name for name in found[0])
    for name, want in found[0].items():
        assert apart(found[1][name], want) < 1e-5, name
    assert not calls("qkv_proj")
    assert calls("gated_mlp")
