"""Arguments and results of a call, as JSON beside tensors: what a capture file holds."""

from __future__ import annotations

from typing import Any

import torch

_PLAIN = (bool, int, float, str)


class Unsaveable(ValueError):
    """An argument of a call cannot be kept; the text names its type."""


class FrozenCache:
    """Stands for a key-value cache at the moment of a captured call: every update starts from the same prefix.

    keys, values: [B, Hkv, S, D] of the one layer that was captured, or None where nothing was cached yet.
    """

    def __init__(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        self.keys = keys
        self.values = values

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prefix followed by the new keys and values, and keep neither."""
        if self.keys is None or self.values is None:
            return keys, values
        return torch.cat([self.keys, keys], dim=-2), torch.cat([self.values, values], dim=-2)


def encode(value: Any, tensors: dict[str, torch.Tensor], layer: int | None) -> Any:
    """Return a JSON value for ``value``; its tensors go to ``tensors``. ``layer``: whose part of a cache is kept."""
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [encode(item, tensors, layer) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): encode(item, tensors, layer) for key, item in value.items()}}
    if hasattr(value, "update") and hasattr(value, "layers"):
        return {"cache": _encode_cache(value, tensors, layer)}
    raise Unsaveable(f"an argument is a {type(value).__name__}, which cannot be kept")


def _encode_cache(cache: Any, tensors: dict[str, torch.Tensor], layer: int | None) -> Any:
    if layer is None:
        raise Unsaveable("a cache is passed to something that is no numbered layer")
    if layer >= len(cache.layers):
        return None
    found = cache.layers[layer]
    keys, values = getattr(found, "keys", None), getattr(found, "values", None)
    if keys is None or keys.numel() == 0:
        return None
    return {"keys": encode(keys, tensors, layer), "values": encode(values, tensors, layer)}


def decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return what `encode` was given; caches come back as `FrozenCache`."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "list":
        return [decode(item, tensors) for item in content]
    if kind == "tuple":
        return tuple(decode(item, tensors) for item in content)
    if kind == "dict":
        return {key: decode(item, tensors) for key, item in content.items()}
    if content is None:
        return FrozenCache(None, None)
    return FrozenCache(decode(content["keys"], tensors), decode(content["values"], tensors))


def float_tensors(value: Any) -> list[torch.Tensor]:
    """Return the float tensors of a result, in order."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in float_tensors(item)]
    return []
