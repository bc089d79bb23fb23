"""Vision towers and the projectors behind them. M is a multiple of the patches of one picture."""

from __future__ import annotations

from .spec import Config, Fusion, Linear, Shard
from .text import fused_pair


def patches(config: Config) -> int:
    """Patches of one square picture of the tower's native size."""
    side = config.integer("image_size") // config.integer("patch_size")
    return side * side


def encoder(config: Config, shard: Shard, into: Fusion, *, class_token: bool) -> list[Linear]:
    """CLIP and SigLIP: separate q, k, v and a two-layer MLP, everything with a bias."""
    hidden, inter = (
        config.integer("hidden_size"),
        shard.cut(config.integer("intermediate_size"), "vision intermediate_size"),
    )
    layers = config.integer("num_hidden_layers")
    config.integer("num_attention_heads")
    rows = patches(config) + class_token
    width = shard.cut(hidden, "vision hidden_size")
    qkv = [Linear("vision.q/k/v", width, hidden, True, 3 * layers, "image", rows=rows)]
    if "qkv" in into:
        qkv = [Linear("vision.qkv", 3 * width, hidden, True, layers, "image", rows=rows)]
    return [
        *qkv,
        Linear("vision.out_proj", hidden, width, True, layers, "image", rows=rows),
        Linear("vision.fc1", inter, hidden, True, layers, "image", rows=rows),
        Linear("vision.fc2", hidden, inter, True, layers, "image", rows=rows),
    ]


def qwen_tower(config: Config, shard: Shard, into: Fusion, *, gated: bool) -> list[Linear]:
    """Qwen2-VL and Qwen2.5-VL towers: fused qkv, pictures of any size, so that M follows the ladder of tokens."""
    hidden = config.integer("hidden_size" if gated else "embed_dim")
    layers = config.integer("depth")
    out = config.integer("out_hidden_size" if gated else "hidden_size")
    merge = config.integer("spatial_merge_size", 2) ** 2
    width = shard.cut(hidden, "vision hidden size")
    if gated:
        inter = shard.cut(config.integer("intermediate_size"), "vision intermediate_size")
        pair = [Linear("vision.gate/up", inter, hidden, True, 2 * layers)]
        mlp = [*fused_pair(pair, "vision.gate_up", into), Linear("vision.down", hidden, inter, True, layers)]
    else:
        inter = shard.cut(hidden * config.integer("mlp_ratio", 4), "vision MLP width")
        mlp = [Linear("vision.fc1", inter, hidden, True, layers), Linear("vision.fc2", hidden, inter, True, layers)]
    return [
        Linear("vision.qkv", 3 * width, hidden, True, layers),
        Linear("vision.proj", hidden, width, True, layers),
        *mlp,
        Linear("vision.merger.0", hidden * merge, hidden * merge, True, 1),
        Linear("vision.merger.2", out, hidden * merge, True, 1),
    ]


def two_layer_projector(config: Config, hidden: int, rows: int, bias: bool) -> list[Linear]:
    """LLaVA's projector: two Linears from the tower's width to the language model's."""
    width = config.integer("hidden_size")
    return [
        Linear("projector.linear_1", hidden, width, bias, 1, "image", rows=rows),
        Linear("projector.linear_2", hidden, hidden, bias, 1, "image", rows=rows),
    ]


def one_layer_projector(config: Config, hidden: int, rows: int) -> list[Linear]:
    """PaliGemma's projector: one Linear with a bias."""
    return [Linear("projector.linear", hidden, config.integer("hidden_size"), True, 1, "image", rows=rows)]
