"""The reviewed table behind :mod:`rocm_overlay.overlays.expected`: per release line, one model a line."""

TABLES = {
    "4.53": """
aria: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3
bert: linear 5
clip: qkv 1, attention 1, linear 1
cohere: qkv 1, attention 1, gated_mlp 1, linear 2
cohere2: qkv 1, attention 1, gated_mlp 1, linear 2
deepseek_v3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 2
dinov2: qkv 1, attention 1, linear 1
dots1: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gemma: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gemma2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gemma3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3
gemma3n: qkv 1, attention 1, linear 3
glm: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
glm4: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
gpt_neox: rope 1, attention 1, linear 1
granite: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
granitemoe: rms_norm 1, rope 1, qkv 1, attention 1, linear 2
helium: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
idefics3: rms_norm 1, qkv 1, attention 1, linear 2
llama: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
llama4: rms_norm 1, qkv 2, attention 2, gated_mlp 1, linear 3
mistral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
mixtral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
olmo: rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
olmo2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
paligemma: linear 1
phi: rope 1, qkv 1, attention 1, linear 2
phi3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 3
pixtral: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 1
qwen2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
qwen2_5_vl: rms_norm 1, qkv 1, attention 2, gated_mlp 2, linear 2
qwen2_moe: rms_norm 1, rope 1, qkv 3, gated_mlp 1, linear 4
qwen2_vl: rms_norm 1, qkv 1, attention 2, gated_mlp 1, linear 2
qwen3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
qwen3_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
roberta: linear 7
siglip: qkv 1, attention 1, linear 1
siglip2: qkv 1, attention 1, linear 1
smollm3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
smolvlm: qkv 1, attention 1, linear 2
stablelm: rope 1, qkv 3, gated_mlp 1, linear 4
starcoder2: rope 1, qkv 1, attention 1, linear 2
vit: qkv 1, attention 1, linear 4
whisper: attention 1, linear 1
xlm_roberta: linear 7
""",
    "4.57": """
aria: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3
bert: linear 5
clip: qkv 1, attention 1, linear 1
cohere: qkv 1, attention 1, gated_mlp 1, linear 2
cohere2: qkv 1, attention 1, gated_mlp 1, linear 2
deepseek_v2: rms_norm 1, attention 1, gated_mlp 1, linear 2
deepseek_v3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 2
dinov2: qkv 1, attention 1, linear 1
ernie4_5: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
exaone4: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gemma: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gemma2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gemma3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3
glm: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
glm4: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
glm4_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gpt_oss: rms_norm 1, qkv 1, attention 1, linear 2
granite: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
granitemoe: rms_norm 1, rope 1, qkv 1, attention 1, linear 2
helium: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
hunyuan_v1_dense: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
idefics3: rms_norm 1, qkv 1, attention 1, linear 2
llama: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
llama4: rms_norm 1, qkv 2, attention 2, gated_mlp 1, linear 3
ministral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
mistral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
mixtral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
olmo2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
olmo3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
paligemma: linear 1
phi: rope 1, qkv 1, attention 1, linear 2
phi3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 3
pixtral: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 1
qwen2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
qwen2_5_vl: qkv 1, attention 3, gated_mlp 2, linear 2
qwen2_moe: rms_norm 1, rope 1, qkv 3, gated_mlp 1, linear 4
qwen3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
qwen3_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
qwen3_next: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3
qwen3_vl: rms_norm 1, rope 1, qkv 1, attention 3, gated_mlp 1, linear 2
roberta: linear 7
seed_oss: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
siglip: qkv 1, attention 1, linear 1
smollm3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
stablelm: rope 1, qkv 3, gated_mlp 1, linear 4
starcoder2: rope 1, qkv 1, attention 1, linear 2
vit: qkv 1, attention 1, linear 4
whisper: attention 1, linear 1
xlm_roberta: linear 7
""",
    "5.23": """
aria: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3
bert: qkv 1, attention 2, linear 5
clip: qkv 1, attention 1, linear 1
cohere: qkv 1, attention 1, gated_mlp 1, linear 2
cohere2: qkv 1, attention 1, gated_mlp 1, linear 2
deepseek_v2: rms_norm 1, attention 1, gated_mlp 1, linear 2
deepseek_v3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 2
dinov2: qkv 1, attention 1, gated_mlp 1, linear 1
ernie4_5: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
exaone4: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gemma: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gemma2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gemma3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3
glm: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
glm4: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
glm4_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
gpt_oss: rms_norm 1, qkv 1, attention 1, linear 2
granite: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
granitemoe: rms_norm 1, rope 1, qkv 1, attention 1, linear 2
helium: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 2
hunyuan_v1_dense: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
idefics3: rms_norm 1, qkv 1, attention 1, linear 2
llama: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
llama4: rms_norm 1, qkv 2, attention 2, gated_mlp 1, linear 3
ministral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
mistral: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
mixtral: rms_norm 1, rope 1, qkv 1, attention 1, linear 2
olmo2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
olmo3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
paligemma: linear 1
phi: rope 1, qkv 1, attention 1, linear 2
phi3: rms_norm 1, rope 1, attention 1, gated_mlp 1, linear 3
pixtral: rms_norm 1, qkv 1, attention 1, gated_mlp 1, linear 1
qwen2: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
qwen2_5_vl: rms_norm 1, rope 1, qkv 1, attention 3, gated_mlp 2, linear 2
qwen2_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
qwen3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
qwen3_moe: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
qwen3_next: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 3
qwen3_vl: rms_norm 1, rope 1, qkv 1, attention 3, gated_mlp 1, linear 2
roberta: qkv 1, attention 2, linear 7
seed_oss: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
siglip: qkv 1, attention 1, linear 1
smollm3: rms_norm 1, rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
stablelm: rope 1, qkv 1, attention 1, gated_mlp 1, linear 2
starcoder2: rope 1, qkv 1, attention 1, linear 2
vit: qkv 1, attention 1, linear 2
whisper: attention 1, linear 1
xlm_roberta: qkv 1, attention 2, linear 7
""",
}
