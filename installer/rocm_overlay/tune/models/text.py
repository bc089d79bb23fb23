"""Decoder-only language models: attention (MHA, GQA, MQA, latent) and MLPs, dense or routed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .spec import Config, Fusion, Linear, Shard, fused


@dataclass(frozen=True)
class Bias:
    """Which of a family's Linears have a bias, as its modeling file builds them."""

    qkv: Callable[[Config], bool]
    o: Callable[[Config], bool]
    mlp: Callable[[Config], bool]


def _never(_: Config) -> bool:
    return False


def _always(_: Config) -> bool:
    return True


def _key(name: str, default: bool) -> Callable[[Config], bool]:
    return lambda config: config.truth(name, default)


NO_BIAS = Bias(_never, _never, _never)
LLAMA = Bias(_key("attention_bias", False), _key("attention_bias", False), _key("mlp_bias", False))
ATTENTION_BIAS = Bias(LLAMA.qkv, LLAMA.o, _never)
QWEN2 = Bias(_always, _never, _never)
STARCODER2 = Bias(_key("use_bias", True), _key("use_bias", True), _key("use_bias", True))
OPT = Bias(_key("enable_bias", True), _key("enable_bias", True), _key("enable_bias", True))
NEOX = Bias(_key("attention_bias", True), _key("attention_bias", True), _always)
GPT_OSS = Bias(_key("attention_bias", True), _key("attention_bias", True), _always)


@dataclass(frozen=True)
class Dims:
    """The sizes of a decoder, on one rank where they are split."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


def dims_of(config: Config, shard: Shard) -> Dims:
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    if config.values.get("head_dim") is None and "head_dim" not in config.defaults and hidden % heads:
        raise config.fail(
            "head_dim", f"is missing and hidden_size {hidden} is not a multiple of {heads} heads", "add head_dim"
        )
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.fail(
            "num_key_value_heads", f"is {kv_heads}, which does not divide {heads} heads", "correct the config"
        )
    return Dims(
        hidden,
        config.integer("num_hidden_layers"),
        shard.cut(heads, "num_attention_heads"),
        shard.kv_heads(kv_heads),
        config.integer("head_dim", hidden // heads),
        config.integer("vocab_size"),
    )


def attention(config: Config, dims: Dims, into: Fusion, bias: Bias) -> list[Linear]:
    q_size, kv_size = dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim
    with_bias = bias.qkv(config)
    parts = [
        Linear("q_proj", q_size, dims.hidden, with_bias, dims.layers),
        Linear("k_proj/v_proj", kv_size, dims.hidden, with_bias, 2 * dims.layers),
    ]
    return [
        *fused(parts, "qkv_proj", into, "qkv"),
        Linear("o_proj", dims.hidden, q_size, bias.o(config), dims.layers),
    ]


def latent_attention(config: Config, shard: Shard, hidden: int, layers: int) -> list[Linear]:
    """DeepSeek's latent attention: low-rank q and kv projections; nothing to fuse by rows."""
    heads = shard.cut(config.integer("num_attention_heads"), "num_attention_heads")
    nope, rope = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    value, rank = config.integer("v_head_dim"), config.integer("kv_lora_rank")
    bias = config.truth("attention_bias", False)
    q_rank = config.values.get("q_lora_rank")
    queries = heads * (nope + rope)
    if q_rank is None:
        first = [Linear("q_proj", queries, hidden, False, layers)]
    else:
        q_rank = config.integer("q_lora_rank")
        first = [
            Linear("q_a_proj", q_rank, hidden, bias, layers),
            Linear("q_b_proj", queries, q_rank, False, layers),
        ]
    return [
        *first,
        Linear("kv_a_proj_with_mqa", rank + rope, hidden, bias, layers),
        Linear("kv_b_proj", heads * (nope + value), rank, False, layers),
        Linear("o_proj", hidden, heads * value, bias, layers),
    ]


def gated_mlp(hidden: int, inter: int, layers: int, into: Fusion, bias: bool, prefix: str = "") -> list[Linear]:
    parts = [Linear(f"{prefix}gate_proj/up_proj", inter, hidden, bias, 2 * layers)]
    return [
        *fused_pair(parts, f"{prefix}gate_up_proj", into),
        Linear(f"{prefix}down_proj", hidden, inter, bias, layers),
    ]


def fused_pair(parts: list[Linear], role: str, into: Fusion) -> list[Linear]:
    """Fuse a Linear that stands for two equal ones into one of twice the rows."""
    part = parts[0]
    if "gate_up" not in into:
        return parts
    return [Linear(role, 2 * part.n, part.k, part.bias, part.count // 2, part.kind, part.active // 2, part.rows)]


def plain_mlp(
    hidden: int, inter: int, layers: int, bias: bool, names: tuple[str, str] = ("fc1", "fc2")
) -> list[Linear]:
    return [Linear(names[0], inter, hidden, bias, layers), Linear(names[1], hidden, inter, bias, layers)]


def experts(hidden: int, inter: int, layers: int, count: int, top_k: int, into: Fusion) -> list[Linear]:
    """Routed experts that are modules of three Linears each (transformers 4.x)."""
    gate_up = Linear("expert.gate/up", inter, hidden, False, 2 * layers * count, "expert", 2 * layers * top_k)
    down = Linear("expert.down", hidden, inter, False, layers * count, "expert", layers * top_k)
    return [*fused_pair([gate_up], "expert.gate_up", into), down]


def lm_head(dims: Dims, shard: Shard, bias: bool = False) -> Linear:
    return Linear("lm_head", shard.rows_up(dims.vocab), dims.hidden, bias, 1, "head")
