"""A small config of any architecture: the default one with every size cut down, sub-configs included.

Works on the names of config fields, which transformers uses alike across architectures. What a few architectures need
besides stands in OVERRIDES, by model type.
"""

from __future__ import annotations

import re
from typing import Any

VOCAB = 128
_HIDDEN, _HEADS, _HEAD = 64, 4, 16

# (parts of one pattern, value): the first pattern that a whole field name fits wins.
_SIZES: tuple[tuple[tuple[str, ...], int], ...] = (
    ((r".*vocab_size", r"n_vocab", r"vocab_size_per_layer_input"), VOCAB),
    ((r".*(num|n)_(key_value|kv)_heads", r"multi_query_group_num"), 2),
    ((r".*mm_tokens_per_image",), 4),
    ((r"qk_nope_head_dim",), 8),
    ((r"rotary_dim",), _HEAD),
    ((r"mamba_n_heads",), 8),
    ((r"mamba_d_ssm",), 128),
    ((r".*head_dim", r"attention_head_size", r"kv_channels", r"head_size", r"d_kv", r"mamba_d_head"), _HEAD),
    ((r"q_lora_rank",), 32),
    ((r".*lora_rank", r"dt_rank", r"time_step_rank"), 16),
    ((r".*(num|n)_(attention_)?heads?", r".*attention_heads", r"linear_num_(key|value)_heads", r"n_head"), _HEADS),
    ((r".*num_(local_)?experts?", r"n_routed_experts", r"moe_num_experts"), 4),
    ((r"num_experts_per_(tok|token)", r"moe_top_?k", r"top_k", r"moe_k", r"top_k_experts", r"experts_per_token"), 2),
    ((r"n_group", r"topk_group", r"num_expert_groups?", r"(n|num|moe_num)_shared_experts?"), 1),
    ((r"first_k_dense_replace", r"moe_layer_start_index", r"num_dense_layers", r"num_hidden_groups"), 1),
    ((r"num_nextn_predict_layers", r"num_kv_shared_layers", r"conv_depthwise_kernel"), 0),
    ((r".*_layers", r".*_blocks", r"n_layers?", r"depth", r"num_layer"), 2),
    ((r".*intermediate.*", r".*ffn.*", r".*feed_?forward.*", r"d_ff", r"d_inner", r"n_inner", r"mlp_dim"), 96),
    ((r".*hidden_size.*", r".*hidden_dim", r".*embedding_size", r".*embed_dim", r"d_model", r"n_embd"), _HIDDEN),
    ((r".*projection_dim", r"projector_dim", r"dim", r"width", r"out_hidden_size", r".*proj_size"), _HIDDEN),
    ((r".*embed_size", r"latent_dim", r"output_dim", r"adapter_dim", r"classifier_proj_size"), _HIDDEN),
    ((r".*image_size", r"resolution", r"input_size"), 32),
    ((r"temporal_patch_size", r"spatial_merge_size", r"tubelet_size"), 2),
    ((r".*patch_size",), 8),
    ((r"max_(source|target)_positions",), 64),
    ((r".*max_(position|seq|len).*", r"n_positions", r"n_ctx", r"block_size", r"seq_length"), 128),
    ((r"num_mel_bins", r"feature_size"), 16),
    ((r".*sliding_window.*", r"attention_window_size", r"attention_chunk_size", r"local_attention"), 8),
    ((r"window_size",), 4),
    ((r"num_frames",), 4),
    ((r"num_query_tokens", r"num_image_tokens", r"num_latents", r"image_seq_len(gth)?"), 4),
)
_PATTERNS = tuple((re.compile("|".join(f"(?:{one})" for one in parts)), size) for parts, size in _SIZES)
_SPECIAL = re.compile(r".*(token_id|token_index|token_ids|_id|_idx|_token)")
_KEEP = frozenset(("type_vocab_size", "num_channels", "in_channels", "layer_idx", "hidden_act", "vision_feature_layer"))
_FIXED: dict[str, Any] = {
    "pad_token_id": 0,
    "padding_idx": 0,
    "bos_token_id": 1,
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
}
_DROPPED = ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path", "id2label", "label2id")
# Computed from other fields when left out.
_DERIVED = ("out_features", "out_indices", "stage_names", "qk_head_dim")
_PER_LAYER = ("mlp_layer_types", "layers_block_type", "block_types", "attention_types", "no_rope_layers", "mlp_types")
_MROPE = [2, 3, 3]

_QWEN_VL: dict[str, Any] = {"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": _MROPE}}
OVERRIDES: dict[str, dict[str, Any]] = {
    "qwen2_vl": _QWEN_VL,
    "qwen2_vl_text": _QWEN_VL,
    "qwen2_5_vl": _QWEN_VL,
    "qwen2_5_vl_text": _QWEN_VL,
    "qwen2_5_omni_text": _QWEN_VL,
    "qwen3_vl": _QWEN_VL,
    "qwen3_vl_text": _QWEN_VL,
    "qwen3_vl_moe_text": _QWEN_VL,
    "deepseek_v2": {"num_experts_per_tok": 2},
    "esm": {"vocab_size": VOCAB},
    "hunyuan_v1_dense": {"rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
    "mllama_text_model": {"rope_scaling": {"rope_type": "default"}},
    "t5": {"decoder_start_token_id": 0},
}


def shrink(config: Any) -> Any:
    """Return a small config of the same class."""
    small = _shrunk(config.to_dict(), [110])
    for name in _DROPPED:
        small.pop(name, None)
    return _with_tokens(type(config)(**small))


def _with_tokens(config: Any) -> Any:
    """Generation needs to know how a sequence begins and is padded."""
    for name, value in (("pad_token_id", 0), ("decoder_start_token_id", 1)):
        needed = name == "pad_token_id" or getattr(config, "is_encoder_decoder", False)
        if needed and getattr(config, name, None) is None:
            try:
                setattr(config, name, value)
            except (AttributeError, NotImplementedError):
                continue
    return config


def _shrunk(values: dict[str, Any], special: list[int]) -> dict[str, Any]:
    small = {name: _field(name, value, special) for name, value in values.items() if name not in _DERIVED}
    if "use_mamba_kernels" in small:
        small["use_mamba_kernels"] = False
    stages = values.get("num_heads")
    if isinstance(stages, list):  # a pyramid: the width doubles from stage to stage
        small["embed_dim"] = 8 * stages[0]
        small.pop("hidden_size", None)
    kinds = values.get("layer_types")
    if isinstance(kinds, list) and kinds:
        chosen = list(dict.fromkeys(kinds))
        small["layer_types"] = chosen = chosen * 2 if len(chosen) == 1 else chosen
        for name in ("num_hidden_layers", "num_layers", "n_layers"):
            if name in small:
                small[name] = len(chosen)
    for part in ("", "encoder_", "decoder_"):  # as many kv heads as heads stay as many
        heads = values.get(f"{part}num_key_value_heads")
        if heads is not None and heads == values.get(f"{part}num_attention_heads"):
            small[f"{part}num_key_value_heads"] = small[f"{part}num_attention_heads"]
    small.update(OVERRIDES.get(str(values.get("model_type")), {}))
    return small


def _field(name: str, value: Any, special: list[int]) -> Any:
    if isinstance(value, dict):
        if name in ("rope_scaling", "rope_parameters"):
            return _rope(value)
        return _shrunk(value, special) if "model_type" in value or name.endswith("_config") else value
    if name in _FIXED and value is not None:
        return _FIXED[name]
    if isinstance(value, list):
        return value[:2] if name in _PER_LAYER else value
    if isinstance(value, bool) or not isinstance(value, int) or name in _KEEP:
        return value
    if _SPECIAL.fullmatch(name) and value >= VOCAB:
        special[0] += 1
        return special[0]
    found = next((size for pattern, size in _PATTERNS if pattern.fullmatch(name)), value)
    return found if value > 0 else value


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    rope = {name: _rope(one) if isinstance(one, dict) else one for name, one in value.items()}
    if "mrope_section" in rope:
        rope["mrope_section"] = _MROPE
    for name in ("short_factor", "long_factor"):
        if rope.get(name):
            rope[name] = rope[name][: _HEAD // 2]
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = 64
    return rope
