"""What a model is fed, read off its configuration: token ids, pixels, decoder ids; all seeded."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch

FIRST_TOKEN = 3  # below: pad, bos and eos of most vocabularies
KINDS = ("causal", "encoder", "seq2seq", "vision", "vlm")


@dataclass(frozen=True)
class Inputs:
    """Seeded inputs for every case.

    ids: int64 [batch, length]; pads: how many positions of row 0 are padding; new_tokens: length of every generate.
    extra: further keyword arguments of a forward (``pixel_values`` [batch, C, H, W], ``decoder_input_ids``).
    """

    ids: torch.Tensor
    pads: int
    new_tokens: int
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    seed: int = 0

    @classmethod
    def seeded(cls, vocab: int, *, seed: int = 0, batch: int = 2, length: int = 20, new_tokens: int = 8) -> Inputs:
        """Draw ids from a generator of their own, so that weights and inputs do not depend on each other."""
        if length < 8:
            raise ValueError(
                f"length is {length}; at least 8 positions are needed to cut three chunks and a padded head"
            )
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(FIRST_TOKEN, vocab, (batch, length), generator=generator)
        return cls(ids, pads=length // 3, new_tokens=new_tokens, seed=seed)

    @classmethod
    def for_model(cls, model: Any, *, seed: int = 0, new_tokens: int = 8) -> Inputs:
        """Build the inputs of any kind of model from its configuration. Raises ValueError where that is not known."""
        kind, config = kind_of(model), model.config
        vocab = getattr(config.get_text_config(), "vocab_size", None)
        found = cls.seeded(vocab or 128, seed=seed, new_tokens=new_tokens)
        extra: dict[str, torch.Tensor] = {}
        ids = found.ids
        if kind == "seq2seq":
            extra["decoder_input_ids"] = ids.flip(1)[:, : ids.shape[1] // 2].contiguous()
        if _hears(model):
            extra["input_features"] = _sound(model, seed, ids.shape[0])
        if kind == "vlm" and "image_grid_thw" in inspect.signature(model.forward).parameters:
            ids, extra = _with_patches(config, ids, seed)
        elif kind in ("vision", "vlm"):
            extra["pixel_values"] = _pixels(model, seed, ids.shape[0])
            if kind == "vlm":
                ids = _with_images(config, ids)
                if "pixel_attention_mask" in inspect.signature(model.forward).parameters:  # images have an axis
                    extra["pixel_values"] = extra["pixel_values"].unsqueeze(1)
        dtype = next(model.parameters()).dtype
        extra = {name: value.to(dtype) if value.is_floating_point() else value for name, value in extra.items()}
        return cls(ids, found.pads, new_tokens, extra, seed).to(model.device)

    def to(self, device: torch.device) -> Inputs:
        """Return the same inputs on ``device``."""
        extra = {name: value.to(device) for name, value in self.extra.items()}
        return Inputs(self.ids.to(device), self.pads, self.new_tokens, extra, self.seed)

    def mask(self, *, left: bool) -> torch.Tensor:
        """Return an attention mask int64 [batch, length] with row 0 padded on one side."""
        mask = torch.ones_like(self.ids)
        if left:
            mask[0, : self.pads] = 0
        else:
            mask[0, -self.pads :] = 0
        return mask


def kind_of(model: Any) -> str:
    """Return one of KINDS."""
    config = model.config
    if getattr(config, "vision_config", None) is not None and config.get_text_config() is not config:
        return "vlm"
    if getattr(model, "main_input_name", "") == "pixel_values":
        return "vision"
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    name = type(model).__name__
    if name.endswith(("ForCausalLM", "LMHeadModel")) and model.can_generate():
        return "causal"
    return "encoder"


def _hears(model: Any) -> bool:
    return getattr(model, "main_input_name", "") == "input_features"


def _sound(model: Any, seed: int, batch: int) -> torch.Tensor:
    """Return seeded features [batch, bins, frames] of a model that hears; ValueError where it names no sizes."""
    bins, positions = (getattr(model.config, name, None) for name in ("num_mel_bins", "max_source_positions"))
    if not isinstance(bins, int) or not isinstance(positions, int):
        raise ValueError(f"{type(model.config).__name__} names no num_mel_bins and max_source_positions")
    return torch.randn(batch, bins, 2 * positions, generator=torch.Generator().manual_seed(seed + 1))


def _with_patches(config: Any, ids: torch.Tensor, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return ids with one image in front of every row, and its patches in a row with the grid that they lie in."""
    vision, rows, side = config.vision_config, ids.shape[0], 4
    token, start = getattr(config, "image_token_id", None), getattr(config, "vision_start_token_id", None)
    if token is None or start is None:
        raise ValueError(f"{type(config).__name__} names no image token, so a prompt with an image is not known")
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
    width = channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(rows * side * side, width, generator=torch.Generator().manual_seed(seed + 1))
    text = torch.where((ids == token) | (ids == start), FIRST_TOKEN, ids)
    head = torch.full((rows, 1 + (side // vision.spatial_merge_size) ** 2), token, dtype=ids.dtype)
    head[:, 0] = start
    grid = torch.tensor([[1, side, side]] * rows)
    return torch.cat([head, text], dim=1), {"pixel_values": pixels, "image_grid_thw": grid}


def _pixels(model: Any, seed: int, batch: int) -> torch.Tensor:
    """Return seeded pixels [batch, channels, size, size]; ValueError where the configuration names no size."""
    config = getattr(model.config, "vision_config", None) or model.config
    size = getattr(config, "image_size", None)
    if isinstance(size, (list, tuple)):
        size = size[0]
    if not isinstance(size, int):
        raise ValueError(f"{type(config).__name__} names no image_size: the size of its pixels is not known")
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(batch, getattr(config, "num_channels", 3), size, size, generator=generator)


def _with_images(config: Any, ids: torch.Tensor) -> torch.Tensor:
    """Put the placeholder tokens of one image in front of every row."""
    token = getattr(config, "image_token_id", None)
    token = getattr(config, "image_token_index", None) if token is None else token
    if token is None:
        raise ValueError(f"{type(config).__name__} names no image token, so a prompt with an image is not known")
    vision = config.vision_config
    count = getattr(config, "image_seq_length", None) or getattr(config, "mm_tokens_per_image", None)
    if count is None:
        count = (vision.image_size // vision.patch_size) ** 2 // getattr(config, "scale_factor", 1) ** 2
    image = torch.full((ids.shape[0], count), token, dtype=ids.dtype)
    text = torch.where(ids == token, FIRST_TOKEN, ids)
    return torch.cat([image, text], dim=1)
