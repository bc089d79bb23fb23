"""Inputs of any model, from the parameters of its forward and the fields of its config."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

# plain: the main input and what has no default. every: each parameter that is known here (times of day, boxes, regions
# of an image ...). turned: the other order of axes: frames of a video, sound with time before bins, rows per codebook.
STYLES = ("plain", "every", "turned")
_ROWS, _LENGTH = 2, 9
_TOKENS = ("input_ids", "pixel_values", "input_features")


def find(config: Any, name: str, default: Any) -> Any:
    """A field of a config or of the first sub-config that has it, the outer ones first."""
    waiting = [config]
    for one in waiting:
        value = getattr(one, name, None)
        if value is not None:
            return value
        waiting += [value for value in vars(one).values() if hasattr(value, "to_dict")]
    return default


class Maker:
    """Makes one tensor per name of a parameter of forward; the same ones for the same config and seed."""

    def __init__(self, config: Any, style: str, seed: int) -> None:
        self.config = config
        self.turned = style == "turned"
        self.generator = torch.Generator().manual_seed(seed)

    def number(self, *names: str, default: int) -> int:
        for name in names:
            value = find(self.config, name, None)
            if isinstance(value, int):
                return value
        return default

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def ids(self, length: int, rows: int = _ROWS) -> torch.Tensor:
        if self.turned:
            rows *= self.number("num_codebooks", default=1)
        last = min(99, self.number("vocab_size", default=128))
        return torch.randint(min(5, last - 1), last, (rows, length), generator=self.generator)

    def image(self) -> torch.Tensor:
        size = find(self.config, "image_size", 128)
        if isinstance(size, dict):
            size = (size["height"], size["width"])
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = self.number("num_channels", "in_channels", default=3)
        frames = (self.number("num_frames", default=2),) if self.turned else ()
        return self.random(_ROWS, *frames, channels, int(height), int(width))

    def features(self) -> torch.Tensor:
        bins = self.number("num_mel_bins", "feature_size", "feature_projection_input_dim", default=16)
        return self.random(_ROWS, 128, bins) if self.turned else self.random(_ROWS, bins, 128)

    def hidden(self) -> torch.Tensor:
        return self.random(_ROWS, _LENGTH, self.number("hidden_size", "d_model", "embed_dim", default=64))

    def patches(self) -> torch.Tensor:
        """The 16 patches that grid() announces, [16, channels * frames * side * side]."""
        side = self.number("patch_size", default=8)
        frames = self.number("temporal_patch_size", default=1)
        return self.random(16, self.number("num_channels", "in_channels", default=3) * frames * side * side)

    def grid(self) -> torch.Tensor:
        return torch.tensor([[1, 4, 4]])

    def boxes(self) -> torch.Tensor:
        corners = torch.randint(0, 99, (_ROWS, _LENGTH, 2), generator=self.generator)
        return torch.cat([corners, corners + 1], dim=-1)

    def past(self, features: int, extra: int = 0) -> torch.Tensor:
        """A series of time steps, [rows, context and lags, features]; ``extra``: of the future alone."""
        context = find(self.config, "context_length", None) or self.number("prediction_length", default=4)
        lags = max(find(self.config, "lags_sequence", None) or [0])
        shape = (_ROWS, extra or context + lags)
        return self.random(*shape, features) if features else self.random(*shape)

    def series(self, *, future: bool) -> torch.Tensor:
        several = self.number("num_input_channels", default=0)
        features = several or (0 if self.number("input_size", default=1) == 1 else self.number("input_size", default=1))
        return self.past(features, self.number("prediction_length", default=4) if future else 0)

    def times(self, *, future: bool) -> torch.Tensor:
        shape = self.series(future=future).shape[:2]
        return self.random(*shape, self.number("num_time_features", default=0))


MAKERS: dict[str, Callable[[Maker], torch.Tensor]] = {
    "input_ids": lambda make: make.ids(_LENGTH),
    "decoder_input_ids": lambda make: make.ids(7),
    "attention_mask": lambda make: torch.ones(_ROWS, _LENGTH, dtype=torch.long),
    "bbox": Maker.boxes,
    "pixel_values": Maker.image,
    "pixel_values_videos": Maker.image,
    "flattened_patches": lambda make: make.random(_ROWS, _LENGTH, 2 + make.patches().shape[-1]),
    "grid_thw": Maker.grid,
    "image_grid_thw": Maker.grid,
    "input_features": Maker.features,
    "audio_values": Maker.image,
    "input_values": lambda make: make.random(_ROWS, *((1,) if make.turned else ()), 4000),
    "hidden_states": Maker.hidden,
    "inputs_embeds": Maker.hidden,
    "encoder_hidden_states": Maker.hidden,
    "visual_feats": lambda make: make.random(_ROWS, 5, make.number("visual_feat_dim", default=64)),
    "visual_pos": lambda make: make.random(_ROWS, 5, make.number("visual_pos_dim", default=4)),
    "visual_embeds": lambda make: make.random(_ROWS, 5, make.number("visual_embedding_dim", default=64)),
    "past_values": lambda make: make.series(future=False),
    "past_observed_mask": lambda make: torch.ones_like(make.series(future=False)),
    "past_time_features": lambda make: make.times(future=False),
    "future_values": lambda make: make.series(future=True),
    "future_time_features": lambda make: make.times(future=True),
}
# Of one kind only the first is given: they say the same, or belong to an image that is not given.
_INSTEAD = {"inputs_embeds": "input_ids", "hidden_states": "input_ids", "encoder_hidden_states": "input_ids"}


def build(model: torch.nn.Module, style: str = "plain", seed: int = 11) -> dict[str, torch.Tensor]:
    """Tensors for one forward: token ids, images, sound or series, as the model's main input says."""
    parameters = inspect.signature(model.forward).parameters
    names = _names(model, parameters, style)
    make = Maker(model.config, style, seed)
    inputs = {name: MAKERS[name](make) for name in names}
    if "grid_thw" in inputs:  # a vision tower without batches: patches in a row
        inputs |= {name: make.patches() for name in ("hidden_states", "pixel_values") if name in inputs}
    return inputs


def _names(model: torch.nn.Module, parameters: Any, style: str) -> list[str]:
    main = getattr(model, "main_input_name", "input_ids")
    needed = {name for name, one in parameters.items() if one.default is one.empty}
    wanted = {name for name in (main, *needed) if name in parameters}
    if "input_ids" in parameters and main in _TOKENS:
        wanted |= {"input_ids", "attention_mask"}
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        wanted.add("decoder_input_ids")
    if style == "every":
        wanted |= set(parameters)
    elif not wanted & set(MAKERS):
        wanted |= {"pixel_values"} if "pixel_values" in parameters else {"inputs_embeds", "hidden_states"}
    wanted &= set(MAKERS) & set(parameters)
    return [name for name in MAKERS if name in wanted and (name in needed or _INSTEAD.get(name) not in wanted)]


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
