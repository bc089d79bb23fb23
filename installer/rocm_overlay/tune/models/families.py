"""One function per shape of decoder: which Linears it has. The registry says which model types use it."""

from __future__ import annotations

from . import text
from .spec import Config, Fusion, Linear, Shard
from .text import Bias, Dims


def dense(config: Config, shard: Shard, dims: Dims, into: Fusion, bias: Bias) -> list[Linear]:
    inter = shard.cut(config.integer("intermediate_size"), "intermediate_size")
    return [
        *text.attention(config, dims, into, bias),
        *text.gated_mlp(dims.hidden, inter, dims.layers, into, bias.mlp(config)),
        text.lm_head(dims, shard),
    ]


def phi3(config: Config, shard: Shard, dims: Dims, into: Fusion, bias: Bias) -> list[Linear]:
    """qkv and gate_up are single weights in the model itself, whatever is asked."""
    return dense(config, shard, dims, into | {"qkv", "gate_up"}, bias)


def starcoder2(config: Config, shard: Shard, dims: Dims, into: Fusion, bias: Bias) -> list[Linear]:
    inter = shard.cut(config.integer("intermediate_size"), "intermediate_size")
    mlp = text.plain_mlp(dims.hidden, inter, dims.layers, bias.mlp(config), ("c_fc", "c_proj"))
    return [*text.attention(config, dims, into, bias), *mlp, text.lm_head(dims, shard)]


def opt(config: Config, shard: Shard, dims: Dims, into: Fusion, bias: Bias) -> list[Linear]:
    inter = shard.cut(config.integer("ffn_dim"), "ffn_dim")
    width = config.integer("word_embed_proj_dim", dims.hidden)
    ends = []
    if width != dims.hidden:
        ends = [Linear("project_in", dims.hidden, width, False, 1), Linear("project_out", width, dims.hidden, False, 1)]
    head = Linear("lm_head", shard.rows_up(dims.vocab), width, False, 1, "head")
    mlp = text.plain_mlp(dims.hidden, inter, dims.layers, bias.mlp(config))
    return [*text.attention(config, dims, into, bias), *mlp, *ends, head]


def gpt_neox(config: Config, shard: Shard, dims: Dims, into: Fusion, bias: Bias) -> list[Linear]:
    inter = shard.cut(config.integer("intermediate_size"), "intermediate_size")
    mlp = text.plain_mlp(dims.hidden, inter, dims.layers, True, ("dense_h_to_4h", "dense_4h_to_h"))
    attention = text.attention(config, dims, into | {"qkv"}, bias)
    return [*attention, *mlp, text.lm_head(dims, shard)]


def mixtral(config: Config, shard: Shard, dims: Dims, into: Fusion, bias: Bias) -> list[Linear]:
    inter = shard.cut(config.integer("intermediate_size"), "intermediate_size")
    count = config.integer("num_local_experts")
    return [
        *text.attention(config, dims, into, bias),
        Linear("router", count, dims.hidden, False, dims.layers),
        *text.experts(dims.hidden, inter, dims.layers, count, config.integer("num_experts_per_tok"), into),
        text.lm_head(dims, shard),
    ]


def routed_layers(config: Config, layers: int) -> int:
    """How many layers of a Qwen MoE are routed: every ``decoder_sparse_step``-th one not in ``mlp_only_layers``."""
    step = config.integer("decoder_sparse_step", 1)
    only = config.values.get("mlp_only_layers")
    dense_layers = set(only) if isinstance(only, list) else set()
    return sum(layer not in dense_layers and (layer + 1) % step == 0 for layer in range(layers))


def qwen_moe(config: Config, shard: Shard, dims: Dims, into: Fusion, bias: Bias) -> list[Linear]:
    count = config.integer("num_experts")
    routed = routed_layers(config, dims.layers)
    inter = shard.cut(config.integer("moe_intermediate_size"), "moe_intermediate_size")
    linears = text.attention(config, dims, into, bias)
    if routed < dims.layers:
        width = shard.cut(config.integer("intermediate_size"), "intermediate_size")
        linears += text.gated_mlp(dims.hidden, width, dims.layers - routed, into, False)
    linears.append(Linear("router", count, dims.hidden, False, routed))
    linears += text.experts(dims.hidden, inter, routed, count, config.integer("num_experts_per_tok"), into)
    if config.values.get("shared_expert_intermediate_size"):
        width = shard.cut(config.integer("shared_expert_intermediate_size"), "shared_expert_intermediate_size")
        linears += text.gated_mlp(dims.hidden, width, routed, into, False, "shared_expert.")
        linears.append(Linear("shared_expert_gate", 1, dims.hidden, False, routed))
    return [*linears, text.lm_head(dims, shard)]


def gpt_oss(config: Config, shard: Shard, dims: Dims, into: Fusion, bias: Bias) -> list[Linear]:
    """The experts are one batched product per layer, which aiter's table does not serve; the router is plain."""
    count = config.integer("num_local_experts")
    return [
        *text.attention(config, dims, into, bias),
        Linear("router", count, dims.hidden, True, dims.layers),
        text.lm_head(dims, shard),
    ]


def deepseek(config: Config, shard: Shard, dims: Dims, into: Fusion, bias: Bias) -> list[Linear]:
    """Latent attention, a few dense layers, then routed ones with shared experts. The router computes in float32."""
    first = min(config.integer("first_k_dense_replace", 0, minimum=0), dims.layers)
    routed = dims.layers - first
    linears = text.latent_attention(config, shard, dims.hidden, dims.layers)
    if first:
        width = shard.cut(config.integer("intermediate_size"), "intermediate_size")
        linears += text.gated_mlp(dims.hidden, width, first, into, False)
    if routed:
        unit = config.integer("moe_intermediate_size")
        shared = shard.cut(unit * config.integer("n_shared_experts"), "shared experts' width")
        linears += text.gated_mlp(dims.hidden, shared, routed, into, False, "shared_experts.")
        linears += text.experts(
            dims.hidden,
            shard.cut(unit, "moe_intermediate_size"),
            routed,
            config.integer("n_routed_experts"),
            config.integer("num_experts_per_tok"),
            into,
        )
    return [*linears, text.lm_head(dims, shard)]
