"""Seeded models of every curated architecture, built from a configuration: nothing is downloaded.

``tiny`` ones are for tests: hidden 64, 2 layers, grouped-query attention, sliding windows and soft caps where the
architecture has them, norm weights and biases that are neither ones nor zeros (so that a dropped weight shows).
``demo`` ones have real head sizes and are large enough that a matrix product costs more than a Python call.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi3", "mixtral")
EXTRA_ARCHITECTURES = ("gemma3", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss")
"""More that overlays are made for; gpt_oss has no sdpa."""
WINDOW = 8  # shorter than every test sequence: a window that is off by one changes the logits

_TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_TINY_EXTRA: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16, "rope_theta": 500.0},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 32, "attention_bias": True},
    "mistral": {"head_dim": 32, "sliding_window": WINDOW},
    "gemma": {"head_dim": 32, "num_key_value_heads": 1},
    "gemma2": {
        "head_dim": 32,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,  # differs from head_dim, as in the released 9B and 27B models
        "attn_logit_softcapping": 3.0,  # low enough that ignoring it is seen
        "final_logit_softcapping": 10.0,
    },
    "phi3": {"partial_rotary_factor": 0.5, "sliding_window": WINDOW},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "gemma3": {
        "head_dim": 32,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen2_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
        "norm_topk_prob": False,
    },
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "rope_interleave": False,
    },
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": None,
        "attention_bias": True,
    },
}
_TINY_COUNTED: dict[str, dict[str, Any]] = {
    "granitemoe": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "qwen3_next": {
        "head_dim": 32,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}
"""Models whose launches are counted, and which the parity tests take from elsewhere."""
_MODEL_TYPES = {"gemma3": "gemma3_text"}

# Small enough for twenty processes on two busy cores whose bf16 products are emulated.
_DEMO: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "qwen3": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}


def tiny_config(architecture: str, **overrides: Any) -> Any:
    """Return a transformers config of ``architecture`` at test size; ``overrides`` win."""
    return _config(architecture, {**_TINY, **{**_TINY_EXTRA, **_TINY_COUNTED}[architecture], **overrides})


def demo_config(architecture: str) -> Any:
    """Return a transformers config of ``architecture`` (llama or qwen3) at demo size, in bf16."""
    common = {
        "vocab_size": 2048,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return _config(architecture, {**common, **_DEMO[architecture], "dtype": torch.bfloat16})


def _config(architecture: str, values: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[_MODEL_TYPES.get(architecture, architecture)](**values)


def build(config: Any, *, seed: int = 0, dtype: torch.dtype = torch.float32, model_class: Any = None) -> Any:
    """Build a causal language model with seeded weights, in eval mode.

    ``model_class`` defaults to the one the installed transformers maps the config to.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    model = AutoModelForCausalLM.from_config(config) if model_class is None else model_class._from_config(config)
    _randomise(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def _randomise(model: Any, seed: int) -> None:
    """Fill every parameter so that attention is far from uniform and logits are of order one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.add_(0.3 * noise)  # around the identity of either form: ones, or gemma's zeros
        elif "embed_tokens" in name:
            parameter.copy_(noise * model.config.hidden_size**-0.5 * 0.5)  # small: a tied head must not echo its input
        elif parameter.dim() == 1:
            parameter.copy_(0.2 * noise)
        else:
            parameter.copy_(1.4 * noise * parameter.shape[-1] ** -0.5)


def save_tiny(architecture: str, folder: Path, *, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
    """Build a tiny model and save it with ``save_pretrained``; return the folder."""
    build(tiny_config(architecture, **overrides), dtype=dtype).save_pretrained(folder)
    return folder


def save_demo(architecture: str, folder: Path) -> Path:
    """Build a demo-sized bf16 model and save it with ``save_pretrained``; return the folder."""
    build(demo_config(architecture), dtype=torch.bfloat16).save_pretrained(folder)
    return folder
