"""Which model types are known and how to read each; an unknown type is refused, never guessed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import UsageError
from ..files import read_text
from . import families, text, vision
from .spec import Config, Fusion, Linear, Model, Shard
from .text import Bias, Dims

Builder = Callable[[Config, Shard, Dims, Fusion, Bias], list[Linear]]
MAX_CONFIG_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Family:
    """How a model type is read. ``norms`` counts per-layer norms of the hidden size, ``head_norms`` those of one head,
    ``launches`` those of a decode layer, stock and overlaid, as `make bench-launches` counted them.

    ``defaults`` are transformers' own for keys that published config files of the type leave out.
    """

    build: Builder
    bias: Bias
    launches: tuple[int, int] | None = None
    norms: int = 2
    head_norms: int = 0
    expert_keys: tuple[str, str] | None = None
    defaults: Mapping[str, int] = field(default_factory=dict)
    note: str = ""


_LLAMA = Family(families.dense, text.LLAMA, launches=(40, 9))
_QWEN2 = Family(families.dense, text.QWEN2)
_QWEN3 = Family(families.dense, text.ATTENTION_BIAS, launches=(56, 9), head_norms=2)
_GEMMA = Family(families.dense, text.ATTENTION_BIAS, defaults={"head_dim": 256})
_GEMMA3_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
}
_LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_QWEN_EXPERTS = ("num_experts", "num_experts_per_tok")
_FLAT_EXPERTS = "experts are one batched product per layer, outside aiter's GEMM table: not listed"

FAMILIES: dict[str, Family] = {
    "llama": replace(_LLAMA, defaults=_LLAMA_DEFAULTS),
    "mistral": Family(families.dense, text.NO_BIAS, launches=(40, 9), defaults={"num_key_value_heads": 8}),
    "granite": replace(_LLAMA, launches=None),
    "smollm3": replace(_LLAMA, launches=None),
    "olmo2": Family(families.dense, text.ATTENTION_BIAS),
    "cohere": Family(families.dense, text.ATTENTION_BIAS, norms=1),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, launches=(64, 14), norms=4),
    "gemma3_text": replace(_GEMMA, launches=(84, 14), norms=4, head_norms=2, defaults=_GEMMA3_DEFAULTS),
    "qwen2": replace(_QWEN2, launches=(40, 9)),
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen3": _QWEN3,
    "phi3": Family(families.phi3, text.NO_BIAS, launches=(39, 9)),
    "starcoder2": Family(families.starcoder2, text.STARCODER2),
    "opt": Family(families.opt, text.OPT),
    "gpt_neox": Family(families.gpt_neox, text.NEOX),
    "mixtral": Family(
        families.mixtral, text.NO_BIAS, launches=(70, 10), expert_keys=("num_local_experts", "num_experts_per_tok")
    ),
    "qwen2_moe": Family(
        families.qwen_moe,
        Bias(lambda config: config.truth("qkv_bias", True), text.NO_BIAS.o, text.NO_BIAS.mlp),
        expert_keys=_QWEN_EXPERTS,
    ),
    "qwen3_moe": Family(
        families.qwen_moe, text.ATTENTION_BIAS, launches=(86, 10), head_norms=2, expert_keys=_QWEN_EXPERTS
    ),
    "gpt_oss": Family(families.gpt_oss, text.GPT_OSS, launches=(106, 39), note=_FLAT_EXPERTS),
    "deepseek_v3": Family(
        families.deepseek,
        text.NO_BIAS,
        expert_keys=("n_routed_experts", "num_experts_per_tok"),
        note="the router computes in float32, outside aiter's GEMM table: not listed",
    ),
}
VISION_DEFAULTS: dict[str, dict[str, int]] = {
    "clip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
    },
    "siglip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
    },
}
# wrapper type -> type of its language model when its section does not say
WRAPPERS = {
    "llava": "llama",
    "paligemma": "gemma",
    "gemma3": "gemma3_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
}
MODEL_TYPES = tuple(sorted({*FAMILIES, *WRAPPERS, *VISION_DEFAULTS}))


def read_config(path: Path) -> tuple[dict[str, object], Path]:
    """Return a config.json (named itself, or by its folder) and the file read."""
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(read_text(file, MAX_CONFIG_BYTES).text)
    except json.JSONDecodeError as error:
        remedy = "correct the JSON"
        raise UsageError(
            "bad-config", f"{file}:{error.lineno}: is not JSON: {error.msg}", remedy=remedy, paths=(str(file),)
        ) from error
    if not isinstance(values, dict):
        raise UsageError(
            "bad-config", f"{file}:1: is not a JSON object", remedy="use a model's config.json", paths=(str(file),)
        )
    return values, file


def read_model(path: Path, *, fused: Fusion = frozenset(), tp: int = 1, assume: str | None = None) -> Model:
    """Return the model of a config.json. ``assume`` names a known model type for one that is not.

    Raises OverlayError for unknown types, missing keys, wrong values and degrees that do not divide the heads.
    """
    if tp < 1:
        raise UsageError("bad-tp", f"tensor parallelism of {tp}", remedy="use 1 or more")
    values, file = read_config(path)
    name = file.parent.name if file.name == "config.json" else file.stem
    found = values.get("model_type")
    model_type = assume or (found if isinstance(found, str) else "")
    config = Config(values, str(file))
    if model_type in VISION_DEFAULTS:
        return _tower_alone(config, name, model_type, fused, tp)
    if model_type in WRAPPERS:
        return _wrapped(config, name, model_type, fused, tp)
    return _decoder(config, name, model_type, fused, tp)


def _family(config: Config, model_type: str) -> Family:
    family = FAMILIES.get(model_type)
    if family is None:
        what = repr(model_type) if model_type else "missing"
        raise config.fail(
            "model_type",
            f"is {what}: not known",
            f"known: {', '.join(MODEL_TYPES)}; --assume llama reads it as one of them",
        )
    return family


def _decoder(config: Config, name: str, model_type: str, fused: Fusion, tp: int) -> Model:
    family = _family(config, model_type)
    config = replace(config, defaults=family.defaults, used_defaults=[])
    shard = Shard(tp, config)
    dims = text.dims_of(config, shard)
    experts = (0, 0)
    if family.expert_keys:
        count, top_k = (config.integer(key) for key in family.expert_keys)
        if top_k > count:
            raise config.fail(family.expert_keys[1], f"is {top_k}, more than {count} experts", "correct the config")
        experts = (count, top_k)
    notes = [family.note] if family.note else []
    linears = tuple(family.build(config, shard, dims, fused, family.bias))
    if config.used_defaults:
        notes.append("not in the config, transformers' default used: " + ", ".join(sorted(set(config.used_defaults))))
    if 0 < config.integer("num_key_value_heads", dims.heads * tp) < tp:
        notes.append(f"fewer key/value heads than {tp} ranks: one head on each, as serving engines replicate them")
    return Model(
        name,
        model_type,
        dims.layers,
        linears,
        kv_bytes_per_layer=_kv_bytes(config, dims, model_type),
        windows=_windows(config, model_type, dims.layers),
        norm_params=dims.layers * (family.norms * dims.hidden + family.head_norms * dims.head_dim) + dims.hidden,
        launches=family.launches,
        experts=experts,
        notes=tuple(notes),
    )


def _kv_bytes(config: Config, dims: Dims, model_type: str) -> int:
    """Bytes of one token's cache in one layer, 16-bit. transformers caches DeepSeek's keys and values expanded."""
    if model_type == "deepseek_v3":
        key = config.integer("qk_nope_head_dim") + config.integer("qk_rope_head_dim")
        return dims.heads * (key + config.integer("v_head_dim")) * 2
    return 2 * dims.kv_heads * dims.head_dim * 2


def _windows(config: Config, model_type: str, layers: int) -> tuple[int, ...]:
    """Return how many tokens each layer's attention looks back, 0 for all: it bounds what a decode reads."""
    size = config.integer("sliding_window", 0, minimum=0)
    kinds = config.values.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(size if kind == "sliding_attention" else 0 for kind in kinds)
    if not size or config.values.get("use_sliding_window") is False:
        return (0,) * layers
    if model_type in ("gemma2", "gpt_oss"):
        return tuple(size if layer % 2 == 0 else 0 for layer in range(layers))
    if model_type == "gemma3_text":
        pattern = config.integer("sliding_window_pattern", 6)
        return tuple(0 if (layer + 1) % pattern == 0 else size for layer in range(layers))
    if model_type.startswith("qwen"):
        first = config.integer("max_window_layers", layers, minimum=0)
        return tuple(size if layer >= first else 0 for layer in range(layers))
    return (size,) * layers


def _section(config: Config, key: str, defaults: Mapping[str, int]) -> Config:
    values = config.nested(key)
    if values is None:
        raise config.fail(key, "is missing", "use the config.json of the model's repository")
    return Config(values, config.path, key, defaults)


def _wrapped(config: Config, name: str, model_type: str, fused: Fusion, tp: int) -> Model:
    inner = config.nested("text_config")
    # Early Qwen-VL files keep the language model's keys at the top.
    body = Config(inner, config.path, "text_config") if inner is not None else config
    stated = body.values.get("model_type") if inner is not None else None
    text_type = stated if isinstance(stated, str) else WRAPPERS[model_type]
    model = _decoder(body, name, text_type, fused, tp)
    hidden = body.integer("hidden_size", FAMILIES[text_type].defaults.get("hidden_size"))
    tower = config.nested("vision_config") or {}
    kind = tower.get("model_type")
    section = _section(config, "vision_config", VISION_DEFAULTS.get(kind, {}) if isinstance(kind, str) else {})
    linears = _tower(section, model_type, hidden, fused, tp)
    return replace(model, model_type=model_type, linears=(*model.linears, *linears))


def _tower(section: Config, model_type: str, hidden: int, fused: Fusion, tp: int) -> list[Linear]:
    shard = Shard(tp, section)
    if model_type in ("qwen2_vl", "qwen2_5_vl"):
        return vision.qwen_tower(section, shard, fused, gated=model_type == "qwen2_5_vl")
    kind = section.values.get("model_type")
    rows = vision.patches(section)
    linears = vision.encoder(section, shard, fused, class_token=kind == "clip_vision_model")
    if model_type == "llava":
        linears += vision.two_layer_projector(section, hidden, rows, True)
    elif model_type == "paligemma":
        linears += vision.one_layer_projector(section, hidden, rows)
    return linears


def _tower_alone(config: Config, name: str, model_type: str, fused: Fusion, tp: int) -> Model:
    section = replace(config, defaults=VISION_DEFAULTS[model_type])
    linears = vision.encoder(section, Shard(tp, section), fused, class_token=model_type == "clip_vision_model")
    layers = section.integer("num_hidden_layers")
    note = "a tower alone: its pooling head is not listed"
    norms = (2 * layers + 1) * section.integer("hidden_size")
    return Model(name, model_type, layers, tuple(linears), 0, (0,) * layers, norms, None, notes=(note,))
