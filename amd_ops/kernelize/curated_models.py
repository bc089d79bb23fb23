"""The computes of every curated model's overlay text: what ``apply_overlay_kernels_to_<model>()`` has a flag for.

Names are those of the switches (``AMD_OPS_STOCK`` names them, too). A release of transformers may lack one: the text
that fits the installed file says what is there.
"""

from __future__ import annotations

CURATED = {
    model: tuple(computes.split())
    for model, computes in {
        "aria": "add_norm attention gated_mlp linear loss mlp_add plan qk_rope qkv rms_norm rope",
        "bert": "attention linear qkv",
        "clip": "add_norm attention linear mlp_add qkv",
        "cohere": "attention gated_mlp linear loss qkv",
        "cohere2": "attention gated_mlp linear loss qkv",
        "deepseek_v2": "add_norm attention experts gated_mlp linear loss mlp_add qkv rms_norm rope",
        "deepseek_v3": "add_norm attention experts gated_mlp linear loss mlp_add moe qkv rms_norm rope router",
        "dinov2": "attention gated_mlp linear qkv",
        "dots1": "add_norm attention gated_mlp linear loss mlp_add moe plan qk_rope qkv rms_norm rope router",
        "ernie4_5": "add_norm attention gated_mlp linear loss mlp_add qkv rms_norm",
        "exaone4": "add_norm attention gated_mlp linear loss qk_rope qkv rms_norm rope",
        "gemma": "add_norm attention gated_mlp linear loss mlp_add plan qk_rope qkv rms_norm rope",
        "gemma2": "add_norm attention gated_mlp linear loss qk_rope qkv rms_norm rope",
        "gemma3": "add_norm attention gated_mlp linear loss plan qk_rope qkv rms_norm rope",
        "gemma3n": "attention linear loss qkv",
        "glm": "add_norm attention gated_mlp linear loss mlp_add qkv rms_norm",
        "glm4": "add_norm attention gated_mlp linear loss qkv rms_norm",
        "glm4_moe": "add_norm attention experts gated_mlp linear loss mlp_add moe qk_rope qkv rms_norm rope router",
        "gpt_neox": "attention linear loss qk_rope rope",
        "gpt_oss": "add_norm attention experts linear loss moe qk_rope qkv rms_norm rope router",
        "granite": "attention gated_mlp linear loss plan qk_rope qkv rms_norm rope",
        "granitemoe": "attention experts linear loss plan qk_rope qkv rms_norm rope router",
        "helium": "add_norm attention gated_mlp linear loss mlp_add qkv rms_norm",
        "hunyuan_v1_dense": "add_norm attention gated_mlp linear loss mlp_add qkv rms_norm rope",
        "idefics3": "add_norm attention linear loss mlp_add qkv rms_norm",
        "llama": "add_norm attention gated_mlp linear loss mlp_add plan qk_rope qkv rms_norm rope",
        "llama4": "add_norm attention gated_mlp linear loss mlp_add qkv rms_norm",
        "ministral": "add_norm attention gated_mlp linear loss mlp_add plan qk_rope qkv rms_norm rope",
        "mistral": "add_norm attention gated_mlp linear loss mlp_add plan qk_rope qkv rms_norm rope",
        "mixtral": "add_norm attention experts gated_mlp linear loss mlp_add moe plan qk_rope qkv rms_norm rope router",
        "olmo": "add_norm attention gated_mlp linear loss mlp_add qkv rope",
        "olmo2": "add_norm attention gated_mlp linear loss qkv rms_norm rope",
        "olmo3": "add_norm attention gated_mlp linear loss qkv rms_norm rope",
        "paligemma": "linear loss",
        "phi": "attention linear loss qkv rope",
        "phi3": "add_norm attention gated_mlp linear loss mlp_add plan qk_rope rms_norm rope",
        "pixtral": "add_norm attention gated_mlp linear mlp_add qkv rms_norm",
        "qwen2": "add_norm attention gated_mlp linear loss mlp_add plan qk_rope qkv rms_norm rope",
        "qwen2_5_vl": "add_norm attention gated_mlp linear loss mlp_add qk_rope qkv rms_norm rope",
        "qwen2_moe": "add_norm attention experts gated_mlp gating linear loss mlp_add moe plan qk_rope qkv rms_norm "
        "rope router",
        "qwen2_vl": "add_norm attention gated_mlp linear loss mlp_add qkv rms_norm",
        "qwen3": "add_norm attention gated_mlp linear loss mlp_add plan qk_rope qkv rms_norm rope",
        "qwen3_moe": "add_norm attention experts gated_mlp linear loss mlp_add moe plan qk_rope qkv rms_norm rope "
        "router",
        "qwen3_next": "add_norm attention delta_rule experts gated_mlp gating linear loss moe qk_rope qkv rms_norm "
        "rope router",
        "qwen3_vl": "add_norm attention gated_mlp linear loss mlp_add qk_rope qkv rms_norm rope",
        "roberta": "attention linear qkv",
        "seed_oss": "add_norm attention gated_mlp linear loss mlp_add qk_rope qkv rms_norm rope",
        "siglip": "add_norm attention linear mlp_add qkv",
        "siglip2": "add_norm attention linear mlp_add qkv",
        "smollm3": "add_norm attention gated_mlp linear loss mlp_add qk_rope qkv rms_norm rope",
        "smolvlm": "add_norm attention linear loss mlp_add qkv",
        "stablelm": "attention gated_mlp linear loss qkv rope",
        "starcoder2": "add_norm attention linear loss mlp_add qk_rope qkv rope",
        "vit": "add_norm attention linear qkv",
        "whisper": "add_norm attention linear",
        "xlm_roberta": "attention linear qkv",
    }.items()
}
"""Model type -> computes, in order of their names."""
