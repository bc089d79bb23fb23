"""kernelize_model over transformers' own models, found by structure alone: same logits, and stock again afterwards,
bit for bit.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import amd_ops
from amd_ops.kernelize import kernelize_model, kernelize_report, unkernelize_model

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 101,
    "pad_token_id": 0,
    "head_dim": 16,
}
DECODER = {"rms_norm", "gated_mlp", "qkv+rope+attention"}
# What must be found in each; olmo2 rotates in fp32, cohere interleaves and has a layer norm without a bias.
FOUND = {
    "llama": DECODER,
    "qwen3": DECODER,
    "mixtral": DECODER,
    "gemma2": DECODER,
    "olmo2": DECODER,
    "phi3": {"rms_norm", "rope+attention"},
    "cohere": {"gated_mlp", "qkv+attention"},
    "opt": {"qkv+attention"},
}


def stacked(model: torch.nn.Module) -> bool:
    """Whether the experts are stacked matrices (transformers 5), not a list of gated MLPs."""
    return any(name.endswith("experts.gate_up_proj") for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", sorted(FOUND))
@pytest.mark.filterwarnings("ignore::amd_ops.DeclinedWarning")
def test_logits(name: str) -> None:
    config = transformers.AutoConfig.for_model(name, **SMALL, **({"num_local_experts": 4} if name == "mixtral" else {}))
    torch.manual_seed(0)
    stock = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(1, 100, (2, 7))
    padding = torch.ones_like(ids)
    padding[0, :3] = 0
    for dtype, allowed in ((torch.float32, 2e-5), (torch.bfloat16, 5e-2)):
        stock = stock.to(dtype)
        fast = copy.deepcopy(stock)
        with torch.no_grad(), amd_ops.override(use_optimized_ops=1, use_fused_projections=1):
            expected = stock(ids, attention_mask=padding).logits
            kernelize_model(fast)
            for _ in range(3):
                logits = fast(ids, attention_mask=padding).logits
            found = {row.kernel.removeprefix("amd_ops:") for row in kernelize_report(fast).applied}
            assert found == (FOUND[name] - {"gated_mlp"} if stacked(stock) else FOUND[name])
            difference = (logits - expected)[padding.bool()].float().abs().max().item()
            assert difference <= allowed * expected.float().abs().max().item()
            unkernelize_model(fast)
            assert torch.equal(fast(ids, attention_mask=padding).logits, expected)
