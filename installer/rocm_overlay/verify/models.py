"""Loads what is verified, in the interpreter under test: a checkpoint by its own class, or a configuration with seeded
weights.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch


def load(path: str, dtype: str, *, seeded: bool, seed: int) -> Any:
    """Return the model in eval mode on the GPU if there is one. Raises what transformers raises, and ValueError."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    cls = model_class(config)
    if seeded:
        model = cls._from_config(config) if hasattr(cls, "_from_config") else cls(config)
        randomise(model, seed)
        model = model.to(getattr(torch, dtype))
    else:
        # `dtype` took the place of `torch_dtype` in 4.56.
        release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
        keyword = "dtype" if release >= (4, 56) else "torch_dtype"
        model = cls.from_pretrained(path, local_files_only=True, **{keyword: getattr(torch, dtype)})
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def model_class(config: Any) -> Any:
    """Return the class that the configuration names, else the one transformers maps it to."""
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if found is not None:
            return found
    names = ["MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_MAPPING"]
    if getattr(config, "is_encoder_decoder", False):
        names.insert(0, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING")
    elif type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING:  # an encoder, which can also be made a decoder
        names.remove("MODEL_FOR_CAUSAL_LM_MAPPING")
    for name in names:
        mapping = getattr(transformers, name, {})
        found = mapping.get(type(config), ())
        for one in found if isinstance(found, tuple) else (found,):
            if isinstance(config, one.config_class):  # pixtral's tower is listed as the model that it is a part of
                return one
    raise ValueError(f"transformers {transformers.__version__} has no model class for {type(config).__name__}")


@torch.no_grad()
def randomise(model: Any, seed: int) -> None:
    """Fill every parameter so that attention is far from uniform and outputs are of order one."""
    generator = torch.Generator().manual_seed(seed)
    embedding = model.get_input_embeddings()
    small: Any = getattr(embedding, "weight", None)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name.lower() and parameter.dim() == 1:
            parameter.add_(0.3 * noise)  # around the identity of either form: ones, or gemma's zeros
        elif parameter is small:
            parameter.copy_(0.5 * noise * parameter.shape[-1] ** -0.5)  # a tied head must not echo its input
        elif parameter.dim() <= 1:
            parameter.copy_(0.2 * noise)
        else:
            parameter.copy_(1.4 * noise * parameter.shape[-1] ** -0.5)


def nan_weights(model: Any) -> list[str]:
    """Return the names of the parameters that hold a NaN."""
    return [name for name, value in model.named_parameters() if bool(value.isnan().any())]


def fingerprint(model: Any) -> str:
    """Return a short hash of names, shapes and a sum over every parameter: enough to tell two checkpoints apart."""
    found = hashlib.sha256()
    for name, value in model.named_parameters():
        found.update(json.dumps([name, list(value.shape)]).encode())
        found.update(f"{float(value.detach().double().sum().cpu()):.6e}".encode())
    return found.hexdigest()[:16]


def use_attention(model: Any, implementation: str) -> None:
    """Switch a loaded model to an attention implementation. ValueError or ImportError where it has none of that name.

    transformers before 4.54 has no method for it; its models read the name from their configurations.
    """
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(implementation)
        return
    if implementation == "sdpa" and not getattr(model, "_supports_sdpa", False):
        raise ValueError(f"{type(model).__name__} does not support sdpa")
    configs = [model.config]
    for config in configs:
        config._attn_implementation = implementation
        configs += [
            part for name in getattr(config, "sub_configs", {}) if (part := getattr(config, name, None)) is not None
        ]
