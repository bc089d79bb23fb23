"""A small config of any architecture: the default one with every size cut down, sub-configs included.

Works on the names of config fields, which transformers uses alike across architectures. What a few architectures need
besides stands in OVERRIDES, by model type.
"""

from __future__ import annotations

import re
from typing import Any

VOCAB = 128
_HIDDEN, _HEADS, _HEAD = 64, 4, 16

# (pattern of a field name, value): the first that fits an integer field wins.
_SIZES: tuple[tuple[str, int], ...] = (
    (r".*(vocab_size|vocab_size_per_layer_input)|n_vocab|num_embeddings", VOCAB),
    (r".*(num|n)_(key_value|kv)_heads|num_kv_heads|n_kv_heads|multi_query_group_num", 2),
    (r".*mm_tokens_per_image", 4),
    (r"qk_rope_head_dim", 8),
    (r"qk_nope_head_dim", 8),
    (r"qk_head_dim|v_head_dim|index_head_dim", _HEAD),
    (r".*head_dim|attention_head_size|kv_channels|head_size|d_kv|linear_(key|value)_head_dim|mamba_d_head", _HEAD),
    (r"q_lora_rank", 32),
    (r"kv_lora_rank|.*lora_rank|dt_rank|time_step_rank", 16),
    (r"linear_num_(key|value)_heads", 4),
    (r".*(num|n)_(attention_)?heads?|.*attention_heads|n_head|mamba_n_heads|num_heads", _HEADS),
    (r"(num|n)_(local_)?experts?|n_routed_experts|num_local_experts|.*num_experts", 4),
    (r"num_experts_per_(tok|token)|moe_top_?k|top_k|moe_k|experts_per_token|num_selected_experts", 2),
    (r"n_group|topk_group|num_expert_groups?|n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers", 1),
    (r".*(num|n)_(hidden_|encoder_|decoder_|transformer_|text_)?(layers?|blocks?)|n_layer|.*_layers|depth|num_layers|n_layers", 2),
    (r"num_hidden_groups|num_nextn_predict_layers", 1),
    (r".*(intermediate|ffn|feed_?forward|inner|mlp|ff)(_(size|dim|hidden_size))?.*|d_ff|d_inner|n_inner|.*_intermediate_size", 96),
    (r".*(hidden_size|hidden_dim|embedding_size|embed_dim|embed_size|d_model|n_embd|projection_dim|projector_dim|hidden_sz).*", _HIDDEN),
    (r"dim|width|hidden|latent_dim|output_dim|out_hidden_size|adapter_dim|classifier_proj_size|proj_size", _HIDDEN),
    (r".*image_size|resolution|input_size|max_image_size", 32),
    (r"vision_feature_layer|feature_layer|vision_feature_select_layer", -1),
    (r"temporal_patch_size|spatial_merge_size|pixel_shuffle_ratio|tubelet_size", 2),
    (r".*patch_size", 8),
    (r"max_(source|target)_positions", 64),
    (r".*max_(position_embeddings|seq_len|sequence_length|len|seq_length).*|n_positions|n_ctx|max_position|block_size|seq_length", 128),
    (r"num_mel_bins|feature_size|num_mels", 16),
    (r"sliding_window|attention_window_size|local_attention|attention_chunk_size|window_size", 8),
    (r"num_frames|frames", 4),
    (r"num_queries|num_query_tokens|num_image_tokens|num_latents|resampler_n_latents|image_seq_length|image_seq_len", 4),
)  # fmt: skip
_SPECIAL = re.compile(r".*(token_id|token_index|token_ids|_id|_idx|_token)$")
_KEEP = frozenset(("type_vocab_size", "position_embedding_type", "num_channels", "in_channels", "layer_idx"))
_FIXED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "sep_token_id": 2}
_FIXED |= {"padding_idx": 0, "pad_token": 0, "forced_eos_token_id": None, "forced_bos_token_id": None, "num_labels": 2}

OVERRIDES: dict[str, dict[str, Any]] = {}


def shrink(config: Any) -> Any:
    """Return a small config of the same class."""
    values = config.to_dict()
    small = _shrunk(values, [110])
    for name in (
        "transformers_version",
        "architectures",
        "dtype",
        "torch_dtype",
        "_name_or_path",
        "id2label",
        "label2id",
    ):
        small.pop(name, None)
    return type(config)(**small)


def _shrunk(values: dict[str, Any], special: list[int]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in values.items():
        small[name] = _field(name, value, values, special)
    kinds = values.get("layer_types")
    if isinstance(kinds, list) and kinds:
        chosen = list(dict.fromkeys(kinds))
        chosen = (chosen * 2)[: max(2, len(chosen))]
        small["layer_types"] = chosen
        for name in ("num_hidden_layers", "num_layers", "n_layers"):
            if name in small:
                small[name] = len(chosen)
    # As many kv heads as heads stay as many.
    if values.get("num_key_value_heads") == values.get("num_attention_heads") and "num_key_value_heads" in values:
        small["num_key_value_heads"] = small.get("num_attention_heads")
    small.update(OVERRIDES.get(str(values.get("model_type")), {}))
    return small


def _field(name: str, value: Any, values: dict[str, Any], special: list[int]) -> Any:
    if isinstance(value, dict):
        if name in ("rope_scaling", "rope_parameters"):
            return _rope(value)
        if "model_type" in value or name.endswith("_config") or name == "backbone_config":
            return _shrunk(value, special)
        return value
    if name in _FIXED and value is not None:
        return _FIXED[name]
    if name in ("mrope_section",):
        return [2, 3, 3]
    if name in ("mlp_layer_types", "layers_block_type", "block_types", "attention_types", "no_rope_layers"):
        return value[:2] if isinstance(value, list) else value
    if _SPECIAL.match(name) and isinstance(value, int) and not isinstance(value, bool) and value >= VOCAB:
        special[0] += 1
        return special[0]
    if isinstance(value, bool) or not isinstance(value, int) or name in _KEEP:
        return value
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            return size if value > 0 else value
    return value


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    rope = {name: _rope(one) if isinstance(one, dict) else one for name, one in value.items()}
    if "mrope_section" in rope:
        rope["mrope_section"] = [2, 3, 3]
    for name in ("short_factor", "long_factor"):
        if name in rope:
            rope[name] = rope[name][: _HEAD // 2]
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = 64
    return rope
