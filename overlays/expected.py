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
}

SITES: Mapping[str, Mapping[str, int]] = {
    "gemma": _DECODER,
    "gemma2": _DECODER,
    "llama": _DECODER,
    "mistral": _DECODER,
    "mixtral": _DECODER,
    # phi3 stores q, k and v in one Linear: its qkv_proj and o_proj are plain linears.
    # Its layer puts a dropout between attention and residual.
    "phi3": {"rms_norm": 1, "rope": 1, "attention": 1, "gated_mlp": 1, "linear": 2, "forms": 2},
    "qwen2": _DECODER,
    "qwen3": _DECODER,
}
