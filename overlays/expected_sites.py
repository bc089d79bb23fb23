"""The reviewed table behind :mod:`rocm_overlay.overlays.expected`: per release line, one model a line."""

TABLES = {
    "4.53": """
aria: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3, forms 2, residual 1, qk_rope 1
bert: linear 5
clip: qkv 1, attention 1, linear 1, residual 1
cohere: qkv 1, attention 1, gated_mlp 1, linear 2, forms 1
cohere2: qkv 1, attention 1, gated_mlp 1, linear 2, forms 1
deepseek_v3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, moe 1
dinov2: qkv 1, attention 1, linear 1
dots1: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1, moe 1
gemma: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
gemma2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
gemma3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3, forms 2, residual 1, qk_rope 1
gemma3n: qkv 1, attention 1, linear 3
glm: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
glm4: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
gpt_neox: rope 1, attention 1, linear 1
granite: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, qk_rope 1
granitemoe: rms_norm 1, rope 1, qkv 1, attention 1, linear 2, forms 1, qk_rope 1
helium: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
idefics3: rms_norm 1, qkv 1, attention 1, linear 2, forms 1, residual 1
llama: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
llama4: rms_norm 1, qkv 2, attention 2, gated_mlp 1, linear 3, forms 2, residual 1
mistral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
mixtral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1, moe 1
olmo: rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 1, residual 1
olmo2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
paligemma: linear 1
phi: rope 1, qkv 1, attention 1, linear 2
phi3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 3, forms 2, residual 1, qk_rope 1
pixtral: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 1, forms 2, residual 1
qwen2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
qwen2_5_vl: rms_norm 1, qkv 1, attention 2, gated_mlp 2, linear 2, forms 3, residual 1
qwen2_moe: rms_norm 1, rope 1, qkv 3, gated_mlp 1, linear 4, forms 2, residual 1, qk_rope 2, moe 1
qwen2_vl: rms_norm 1, qkv 1, attention 2, gated_mlp 1, linear 2, forms 2, residual 1
qwen3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
qwen3_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1, moe 1
roberta: linear 7
siglip: qkv 1, attention 1, linear 1, residual 1
siglip2: qkv 1, attention 1, linear 1, residual 1
smollm3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
smolvlm: qkv 1, attention 1, linear 2, residual 1
stablelm: rope 1, qkv 3, gated_mlp 1, linear 4, forms 1
starcoder2: rope 1, qkv 1, attention 1, linear 2, residual 1, qk_rope 1
vit: qkv 1, attention 1, linear 4
whisper: attention 1, linear 1, residual 1
xlm_roberta: linear 7
""",
    "4.57": """
aria: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3, forms 2, residual 1, qk_rope 1
bert: linear 5
clip: qkv 1, attention 1, linear 1, residual 1
cohere: qkv 1, attention 1, gated_mlp 1, linear 2, forms 1
cohere2: qkv 1, attention 1, gated_mlp 1, linear 2, forms 1
deepseek_v2: rms_norm 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
deepseek_v3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, moe 1
dinov2: qkv 1, attention 1, linear 1
ernie4_5: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
exaone4: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
gemma: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
gemma2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
gemma3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3, forms 2, residual 1, qk_rope 1
glm: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
glm4: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
glm4_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, moe 1
gpt_oss: rms_norm 1, qkv 1, attention 1, linear 2, forms 1, residual 1, moe 1
granite: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, qk_rope 1
granitemoe: rms_norm 1, rope 1, qkv 1, attention 1, linear 2, forms 1, qk_rope 1
helium: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
hunyuan_v1_dense: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
idefics3: rms_norm 1, qkv 1, attention 1, linear 2, forms 1, residual 1
llama: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
llama4: rms_norm 1, qkv 2, attention 2, gated_mlp 1, linear 3, forms 2, residual 1
ministral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
mistral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
mixtral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1, moe 1
olmo2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
olmo3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
paligemma: linear 1
phi: rope 1, qkv 1, attention 1, linear 2
phi3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 3, forms 2, residual 1, qk_rope 1
pixtral: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 1, forms 2, residual 1
qwen2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
qwen2_5_vl: qkv 1, attention 3, gated_mlp 2, linear 2, forms 2, residual 1
qwen2_moe: rms_norm 1, rope 1, qkv 3, gated_mlp 1, linear 4, forms 2, residual 1, qk_rope 2, moe 1
qwen3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
qwen3_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1, moe 1
qwen3_next: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3, forms 2, residual 1, moe 1
qwen3_vl: rms_norm 1, rope 1, qkv 1, attention 3, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
roberta: linear 7
seed_oss: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 1, residual 1, qk_rope 1
siglip: qkv 1, attention 1, linear 1, residual 1
smollm3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
stablelm: rope 1, qkv 3, gated_mlp 1, linear 4, forms 1
starcoder2: rope 1, qkv 1, attention 1, linear 2, residual 1, qk_rope 1
vit: qkv 1, attention 1, linear 4
whisper: attention 1, linear 1, residual 1
xlm_roberta: linear 7
""",
    "5.23": """
aria: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3, forms 2, residual 1, qk_rope 1
bert: qkv 1, attention 2, linear 5
clip: qkv 1, attention 1, linear 1, residual 1
cohere: qkv 1, attention 1, gated_mlp 1, linear 2, forms 1
cohere2: qkv 1, attention 1, gated_mlp 1, linear 2, forms 1
deepseek_v2: rms_norm 1, attention 1, gated_mlp 1, linear 2, forms 3, residual 1, experts 1
deepseek_v3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 2, forms 3, residual 1, experts 1
dinov2: qkv 1, attention 1, gated_mlp 1, linear 1, forms 1
ernie4_5: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
exaone4: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
gemma: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
gemma2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
gemma3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3, forms 2, residual 1, qk_rope 1
glm: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
glm4: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
glm4_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 3, residual 1, experts 1
gpt_oss: rms_norm 1, qkv 1, attention 1, linear 2, forms 2, residual 1, experts 1
granite: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, qk_rope 1
granitemoe: rms_norm 1, rope 1, qkv 1, attention 1, linear 2, forms 2, qk_rope 1, experts 1
helium: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
hunyuan_v1_dense: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
idefics3: rms_norm 1, qkv 1, attention 1, linear 2, forms 1, residual 1
llama: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
llama4: rms_norm 1, qkv 2, attention 2, gated_mlp 1, linear 3, forms 2, residual 1
ministral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
mistral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
mixtral: rms_norm 1, rope 1, qkv 1, attention 1, linear 2, forms 2, residual 1, qk_rope 1, experts 1
olmo2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
olmo3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1
paligemma: linear 1
phi: rope 1, qkv 1, attention 1, linear 2
phi3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 3, forms 2, residual 1, qk_rope 1
pixtral: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 1, forms 2, residual 1
qwen2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
qwen2_5_vl: rms_norm 1, rope 1, qkv 1, attention 3, gated_mlp 2, linear 2, forms 3, residual 1, qk_rope 1
qwen2_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 3, residual 1, qk_rope 1, experts 1
qwen3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
qwen3_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 3, residual 1, qk_rope 1, experts 1
qwen3_next: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3, forms 3, residual 1, experts 1
qwen3_vl: rms_norm 1, rope 1, qkv 1, attention 3, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
roberta: qkv 1, attention 2, linear 7
seed_oss: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 1, residual 1, qk_rope 1
siglip: qkv 1, attention 1, linear 1, residual 1
smollm3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 2, residual 1, qk_rope 1
stablelm: rope 1, qkv 1, attention 1, gated_mlp 1, linear 2, forms 1
starcoder2: rope 1, qkv 1, attention 1, linear 2, residual 1, qk_rope 1
vit: qkv 1, attention 1, linear 2, residual 1
whisper: attention 1, linear 1, residual 1
xlm_roberta: qkv 1, attention 2, linear 7
""",
}
