"""How many sites each recipe must edit in each committed model, in every stock text of it.

A release is generated only when this holds exactly: a recipe that finds less has lost a model, one that finds more has
an edit that nobody has reviewed.
"""

from __future__ import annotations

from collections.abc import Mapping

_DECODER = {
    "rms_norm": 1,
    "rope": 1,
    "qkv": 1,
    "attention": 1,
    "gated_mlp": 1,
    "linear": 1,
    "forms": 2,
    "residual": 1,
    "qk_rope": 1,
}

SITES: Mapping[str, Mapping[str, int]] = {
    "gemma": _DECODER,
    "gemma2": _DECODER,
    "llama": _DECODER,
    "mistral": _DECODER,
    "gemma3": _DECODER,
    "mixtral": {**_DECODER, "moe": 1},
    # phi3 stores q, k and v in one Linear: its qkv_proj and o_proj are plain linears.
    "phi3": {
        "rms_norm": 1,
        "rope": 1,
        "attention": 1,
        "gated_mlp": 1,
        "linear": 2,
        "forms": 2,
        "residual": 1,
        "qk_rope": 1,
    },
    "qwen2": _DECODER,
    # Three attention classes that do not call the interface by name; the third leaves its rotation to the second.
    "qwen2_moe": {
        "rms_norm": 1,
        "rope": 1,
        "qkv": 3,
        "gated_mlp": 1,
        "linear": 3,
        "forms": 2,
        "residual": 1,
        "qk_rope": 2,
        "moe": 1,
    },
    "qwen3": _DECODER,
    "qwen3_moe": {**_DECODER, "moe": 1},
    # Its attention is multi-head latent: no q/k/v in one, and a cache of two widths.
    "deepseek_v3": {
        "rms_norm": 1,
        "rope": 1,
        "attention": 1,
        "gated_mlp": 1,
        "linear": 1,
        "forms": 2,
        "residual": 1,
        "moe": 1,
    },
    # Its norm multiplies in fp32, its rotation takes tables of half width.
    "gpt_oss": {"qkv": 1, "attention": 1, "linear": 1, "residual": 1, "moe": 1},
}
