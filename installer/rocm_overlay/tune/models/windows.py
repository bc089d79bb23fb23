"""How far each layer's attention looks back: what bounds the key/value bytes a decode step reads."""

from __future__ import annotations

from .spec import Config


def windows(config: Config, model_type: str, layers: int) -> tuple[int, ...]:
    """Return per layer the sliding window in tokens, 0 for full attention."""
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
