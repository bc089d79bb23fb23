"""A robot policy in the style of pi0 on stock modules of transformers: a PaliGemma reads images and words, a smaller
Gemma "action expert" turns noise into actions, and both attend to each other in every layer.

    python examples/policy_stack.py [--output actions.pt]

Nothing in here knows about the overlay. Under `overlay install --transformers 4.53` (or `overlay run -- python ...`)
and toggles, the norms, the rotary embedding, the gated MLPs and the vision tower of this very code run through amd_ops.
Sizes are tiny and weights are seeded. Written for the 4.53 line, which such stacks are pinned to.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaModel, PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.models.gemma import modeling_gemma

LAYERS, HEADS, HEAD_DIM, WIDTH, EXPERT_WIDTH, IMAGE = 2, 4, 16, 64, 32, 28
ACTIONS, ACTION_DIM, STEPS = 5, 7, 3
_GEMMA: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": HEAD_DIM,
    "vocab_size": 128,
    "hidden_activation": "gelu_pytorch_tanh",
}


class Policy(nn.Module):
    """Image and words -> a chunk of actions, by a few Euler steps of a learned flow."""

    def __init__(self) -> None:
        super().__init__()
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "image_size": IMAGE, "patch_size": 14, "projection_dim": WIDTH}  # fmt: skip
        text = {"model_type": "gemma", "hidden_size": WIDTH, "intermediate_size": 96, **_GEMMA}
        config = PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=WIDTH, image_token_index=127)
        self.paligemma = PaliGemmaForConditionalGeneration(config).model
        self.expert = GemmaModel(GemmaConfig(hidden_size=EXPERT_WIDTH, intermediate_size=64, **_GEMMA))
        self.action_in = nn.Linear(ACTION_DIM + 1, EXPERT_WIDTH)
        self.action_out = nn.Linear(EXPERT_WIDTH, ACTION_DIM)

    @torch.no_grad()
    def act(self, image: Tensor, words: Tensor, noise: Tensor) -> Tensor:
        """image [B, 3, IMAGE, IMAGE], words [B, W], noise [B, ACTIONS, ACTION_DIM] -> actions, shaped like noise."""
        language = self.paligemma.language_model
        prefix = torch.cat([self.paligemma.get_image_features(image), language.embed_tokens(words)], dim=1)
        actions = noise
        for step in range(STEPS):
            time = torch.full_like(actions[..., :1], 1 - step / STEPS)
            velocity = self.velocity(language, prefix, self.action_in(torch.cat([actions, time], dim=-1)))
            actions = actions - velocity / STEPS
        return actions

    def velocity(self, language: GemmaModel, prefix: Tensor, suffix: Tensor) -> Tensor:
        """One pass of both decoders, layer by layer, side by side."""
        states = [prefix, suffix]
        length, seen = prefix.shape[1] + suffix.shape[1], prefix.shape[1]
        mask = prefix.new_zeros(1, 1, length, length)
        mask[..., :seen, seen:] = torch.finfo(prefix.dtype).min  # what was seen does not look at the actions
        position = torch.arange(length).unsqueeze(0)
        turn = language.rotary_emb(prefix, position)
        for layers in zip(language.layers, self.expert.layers, strict=True):
            states = joint_layer(layers, states, turn, mask)
        return self.action_out(self.expert.norm(states[1]))


def joint_layer(layers: Any, states: list[Tensor], turn: tuple[Tensor, Tensor], mask: Tensor) -> list[Tensor]:
    """One layer of each decoder; queries, keys and values meet along the length."""
    parts = []
    for layer, x in zip(layers, states, strict=True):
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        parts.append([p(normed).view(*x.shape[:2], -1, HEAD_DIM).transpose(1, 2) for p in projections])
    query, key, value = (torch.cat(one, dim=2) for one in zip(*parts, strict=True))
    query, key = modeling_gemma.apply_rotary_pos_emb(query, key, *turn)
    attended, _ = modeling_gemma.eager_attention_forward(
        layers[0].self_attn, query, key, value, mask, scaling=HEAD_DIM**-0.5
    )
    attended = attended.reshape(*attended.shape[:2], -1).split([x.shape[1] for x in states], dim=1)
    after = []
    for layer, x, mixed in zip(layers, states, attended, strict=True):
        x = x + layer.self_attn.o_proj(mixed)
        after.append(x + layer.mlp(layer.post_attention_layernorm(x)))
    return after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="save the actions here")
    options = parser.parse_args()
    torch.manual_seed(0)
    policy = Policy().eval()
    image, words = torch.randn(2, 3, IMAGE, IMAGE), torch.randint(0, 120, (2, 6))
    actions = policy.act(image, words, torch.randn(2, ACTIONS, ACTION_DIM))
    print("actions", list(actions.shape), "norm", f"{actions.norm():.6f}")
    if options.output:
        torch.save(actions, options.output)
    if "amd_ops" in sys.modules:  # imported by overlaid files alone
        print(sys.modules["amd_ops"].report())


if __name__ == "__main__":
    main()
