"""Inputs of any model, from the parameters of its forward."""

from __future__ import annotations

import inspect
from typing import Any

import torch


def find(config: Any, name: str, default: Any) -> Any:
    """A field of a config or of the first sub-config that has it."""
    for one in (config, *(value for value in vars(config).values() if hasattr(value, "to_dict"))):
        value = getattr(one, name, None)
        if value is not None:
            return value
    return default


def build(model: torch.nn.Module, seed: int = 11) -> dict[str, torch.Tensor]:
    """Tensors for one forward: token ids, images or sound, as the model's main input says."""
    generator = torch.Generator().manual_seed(seed)
    parameters = inspect.signature(model.forward).parameters
    config = model.config
    main = getattr(model, "main_input_name", "input_ids")
    inputs: dict[str, torch.Tensor] = {}
    vocabulary = find(config, "vocab_size", 128)
    if "input_ids" in parameters and (main in ("input_ids", "pixel_values", "input_features")):
        inputs["input_ids"] = torch.randint(5, min(99, int(vocabulary)), (2, 9), generator=generator)
        if "attention_mask" in parameters:
            inputs["attention_mask"] = torch.ones(2, 9, dtype=torch.long)
    if main == "pixel_values" or (main not in inputs and "pixel_values" in parameters):
        size = find(config, "image_size", 32)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = find(config, "num_channels", find(config, "in_channels", 3))
        inputs["pixel_values"] = torch.randn(2, int(channels), int(height), int(width), generator=generator)
    if main == "input_features":
        bins = int(find(config, "num_mel_bins", find(config, "feature_size", 16)))
        inputs["input_features"] = torch.randn(2, bins, 128, generator=generator)
    if main == "input_values" and "input_values" in parameters:
        inputs["input_values"] = torch.randn(2, 4000, generator=generator)
    if "decoder_input_ids" in parameters and getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.randint(5, 99, (2, 7), generator=generator)
    if not inputs and "inputs_embeds" in parameters:
        inputs["inputs_embeds"] = torch.randn(2, 9, int(find(config, "hidden_size", 64)), generator=generator)
    if not inputs and "hidden_states" in parameters:
        inputs["hidden_states"] = torch.randn(2, 9, int(find(config, "hidden_size", 64)), generator=generator)
    return inputs


def fill(model: torch.nn.Module) -> None:
    """Give every parameter values that depend on its name alone: large enough to matter, near one for norm weights."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(sum(ord(letter) * (place + 1) for place, letter in enumerate(name)))
        noise = torch.randn(parameter.shape, generator=generator)
        near_one = parameter.dim() == 1 and name.endswith("weight")
        with torch.no_grad():
            parameter.copy_(1 + 0.2 * noise if near_one else 0.08 * noise)


def tensors(output: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of an output by its path; caches are seen by what is generated with them."""
    if isinstance(output, torch.Tensor):
        return {name: output.detach().clone()}
    found: dict[str, torch.Tensor] = {}
    if isinstance(output, dict):
        items = list(output.items())
    elif isinstance(output, (list, tuple)):
        items = [(str(place), one) for place, one in enumerate(output)]
    else:
        return found
    for key, one in items:
        if key not in ("past_key_values", "encoder_past_key_values"):
            found.update(tensors(one, f"{name}.{key}" if name else str(key)))
    return found
