"""Fine-tune with LoRA (peft) on an overlaid model: a few steps on one sentence of token ids, losses printed.

    overlay run -- python examples/peft_finetune.py                # toggles off: stock's losses, bit for bit
    USE_OPTIMIZED_OPS=1 USE_FUSED_PROJECTIONS=1 overlay run -- python examples/peft_finetune.py

Adapters keep working: `q_proj` stays a module of its own. With LoRA on it, the packed projection declines, computes the
three modules, and says so in the report; the norms, the rotary embedding and the MLP are faster paths with gradients.
"""

from __future__ import annotations

import json
import sys

import torch
from peft import LoraConfig, get_peft_model
from tiny_models import build, tiny_config

STEPS = 6


def main() -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        build(tiny_config("llama")),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    ).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=2e-2)
    tokens = torch.randint(3, 128, (2, 24))
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    print(json.dumps({"losses": losses, "trained": sum(one.numel() for one in trained)}))
    if "amd_ops" in sys.modules:
        print(sys.modules["amd_ops"].report())


if __name__ == "__main__":
    main()
