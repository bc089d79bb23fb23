"""A small config of any architecture: the default one with its sizes cut down, sub-configs included.

Works on the names of config fields, which transformers uses alike across architectures. ``small`` cuts every size;
``shallow`` cuts counts alone and leaves widths, images and windows as they are, for architectures whose widths depend
on each other in ways that no field tells (pyramids, convolution stacks). What a few architectures need besides stands
in OVERRIDES, by model type.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

SCALES = ("small", "shallow")
VOCAB = 128
_HIDDEN, _HEADS, _HEAD = 64, 4, 16
_LARGEST = 384  # a forward over the 1024 pixels of a segmentation model takes minutes

_EXPERTS = 4
_PER_TOKEN = (r"num_experts_per_(tok|token)", r"moe_top_?k", r"top_k", r"moe_k", r"top_k_experts", r"experts_per_token")

# (parts of one pattern, value): the first pattern that a whole field name fits wins.
_Sizes = tuple[tuple[tuple[str, ...], int], ...]
_COUNTS: _Sizes = (
    ((r".*vocab_size", r"n_vocab", r"vocab_size_per_layer_input"), VOCAB),
    ((r".*num_(local_)?experts?", r"n_routed_experts", r"moe_num_experts"), _EXPERTS),
    (_PER_TOKEN, 2),
    ((r".*_layer_period",), 2),
    ((r"n_group", r"topk_group", r"num_expert_groups?", r"(n|num|moe_num)_shared_experts?", r".*_layer_offset"), 1),
    ((r"first_k_dense_replace", r"moe_layer_start_index", r"num_dense_layers", r"num_hidden_groups"), 1),
    ((r"num_nextn_predict_layers", r"num_kv_shared_layers"), 0),
    ((r".*_layers", r".*_blocks", r"n_layers?", r"depth", r"num_layer"), 2),
)
_WIDTHS: _Sizes = (
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
    ((r"conv_depthwise_kernel",), 0),
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
# What a default config leaves open although the model cannot be built without it.
_OPEN: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "attn_layer_indices": [1],
    "prediction_length": 4,
    "lags_sequence": [1, 2],
    "vocabulary_map": {"<image>": 100},
}
_DROPPED = ("transformers_version", "architectures", "dtype", "torch_dtype", "_name_or_path", "id2label", "label2id")
# Computed from other fields when left out.
_DERIVED = ("out_features", "out_indices", "stage_names", "qk_head_dim", "num_feat_extract_layers")
_PER_LAYER = ("mlp_layer_types", "block_types", "attention_types", "no_rope_layers", "mlp_types")
_LAYER_KINDS = ("layer_types", "layers_block_type")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layers")
_MROPE = [2, 3, 3]
# Stands in for a backbone of a package that is not here.
_RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "out_indices": [2, 3, 4],
}

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
    "qwen3_omni_moe_text": _QWEN_VL,
    "deepseek_v2": {"num_experts_per_tok": 2},
    "esm": {"vocab_size": VOCAB},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "hunyuan_v1_dense": {"rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "mllama_text_model": {"rope_scaling": {"rope_type": "default"}},
    "t5": {"decoder_start_token_id": 0},
}


def shrink(config: Any, scale: str = "small", *, every_expert: bool = False) -> Any:
    """Return a small config of the same class; ``scale`` is one of SCALES.

    ``every_expert``: a token goes to all experts, so that no rounding of a router's logits chooses others.
    """
    small = _Cut(scale, every_expert).config(config.to_dict())
    for name in _DROPPED:
        small.pop(name, None)
    return _with_tokens(_made(type(config), small))


def _made(kind: type, values: dict[str, Any]) -> Any:
    """Build a config; a value that its __init__ gives to the base class itself is left to it."""
    while True:
        try:
            return kind(**values)
        except TypeError as error:
            twice = re.search(r"multiple values for keyword argument '(\w+)'", str(error))
            if not twice:
                raise
            del values[twice.group(1)]


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


class _Cut:
    """Cuts the fields of one config and its sub-configs; special tokens get numbers of their own below VOCAB."""

    def __init__(self, scale: str, every_expert: bool) -> None:
        sizes = _COUNTS + _WIDTHS if scale == "small" else _COUNTS
        self.patterns = [(re.compile("|".join(f"(?:{one})" for one in parts)), size) for parts, size in sizes]
        self.narrow = scale == "small"
        self.per_token = re.compile("|".join(_PER_TOKEN)) if every_expert else None
        self.special = 110

    def config(self, values: dict[str, Any]) -> dict[str, Any]:
        small = {name: self.field(name, value) for name, value in values.items() if name not in _DERIVED}
        small |= {name: value for name, value in _OPEN.items() if name in values and values[name] is None}
        if "use_mamba_kernels" in small:
            small["use_mamba_kernels"] = False
        if self.narrow:
            _relate_widths(values, small)
        if "head_dim" in values and values["head_dim"] is None and small.get("num_attention_heads"):
            small["head_dim"] = small["hidden_size"] // small["num_attention_heads"]
        _choose_layers(values, small)
        _choose_stages(values, small)
        if self.narrow and "vision_config" in small and (small.get("text_config") or {}).get("rope_parameters"):
            small["text_config"]["rope_parameters"].setdefault("mrope_section", _MROPE)
        if values.get("use_timm_backbone"):
            small |= {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}
            small |= {"backbone_kwargs": None, "backbone_config": _RESNET}
        small.update(OVERRIDES.get(str(values.get("model_type")), {}))
        if self.per_token:
            small |= {name: _EXPERTS for name, value in small.items() if value and self.per_token.fullmatch(name)}
        return small

    def field(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return self.nested(name, value)
        if name in _FIXED and value is not None:
            return _FIXED[name]
        if isinstance(value, (list, tuple)):
            return self.listed(name, value)
        if isinstance(value, bool) or not isinstance(value, int) or name in _KEEP:
            return value
        if _SPECIAL.fullmatch(name) and value >= VOCAB:
            self.special += 1
            return self.special
        if name == "image_size" and not self.narrow:
            return min(value, _LARGEST)
        found = next((size for pattern, size in self.patterns if pattern.fullmatch(name)), value)
        return found if value > 0 else value

    def nested(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        if value.get("model_type") == "timm_backbone":
            return _RESNET
        if name in ("rope_scaling", "rope_parameters"):
            return self.rope(value)
        if name == "per_layer_config":
            return {layer: one for layer, one in value.items() if int(layer) < 2}
        return self.config(value) if "model_type" in value or name.endswith("_config") else value

    def listed(self, name: str, values: Sequence[Any]) -> Sequence[Any]:
        if name == "image_size":
            return [min(one, _LARGEST) for one in values]
        if name == "depths":
            return [min(one, 2) for one in values]
        return values[:2] if name in _PER_LAYER else values

    def rope(self, value: dict[str, Any]) -> dict[str, Any]:
        rope = {name: self.rope(one) if isinstance(one, dict) else one for name, one in value.items()}
        if self.narrow:
            if "mrope_section" in rope:
                rope["mrope_section"] = _MROPE
            for name in ("short_factor", "long_factor"):
                if rope.get(name):
                    rope[name] = rope[name][: _HEAD // 2]
        if "original_max_position_embeddings" in rope:
            rope["original_max_position_embeddings"] = 64
        return rope


def _relate_widths(values: dict[str, Any], small: dict[str, Any]) -> None:
    """Keep what fields of one config have to do with each other."""
    stages = values.get("num_heads")
    if isinstance(stages, list) and isinstance(values.get("embed_dim"), int):  # a pyramid: the width doubles per stage
        small["embed_dim"] = 8 * stages[0]
        small.pop("hidden_size", None)
    for part in ("", "encoder_", "decoder_"):  # as many kv heads as heads stay as many
        heads = values.get(f"{part}num_key_value_heads")
        if f"{part}num_key_value_heads" in values and heads in (None, values.get(f"{part}num_attention_heads")):
            small[f"{part}num_key_value_heads"] = small.get(f"{part}num_attention_heads")


def _choose_layers(values: dict[str, Any], small: dict[str, Any]) -> None:
    """One layer of each kind, two where there is one kind."""
    for name in _LAYER_KINDS:
        kinds = values.get(name)
        if isinstance(kinds, list) and kinds:
            chosen = list(dict.fromkeys(kinds))
            small[name] = chosen = chosen * 2 if len(chosen) == 1 else chosen
            small |= {count: len(chosen) for count in _LAYERS if count in small}
            if "hybrid_layer_ids" in small:
                small["hybrid_layer_ids"] = [place for place, kind in enumerate(chosen) if kind == "hybrid"]
    before, count = values.get("num_hidden_layers"), small.get("num_hidden_layers")
    for name, value in values.items():  # one entry per layer
        if isinstance(value, list) and len(value) == before and name not in _LAYER_KINDS:
            small[name] = value[:count]


def _choose_stages(values: dict[str, Any], small: dict[str, Any]) -> None:
    """A pyramid keeps its stages; a backbone gives as many as its user asks for, where layers are stages one each."""
    if isinstance(values.get("depths"), list) and "num_layers" in values:
        small["num_layers"] = len(values["depths"])
    stages = values.get("out_indices")
    if isinstance(stages, (list, tuple)) and len(stages) > 1:
        flat = "depths" not in values and "num_hidden_layers" in values
        small["out_indices"] = list(range(1, len(stages) + 1)) if flat else list(stages)
        if flat:
            small["num_hidden_layers"] = len(stages)
