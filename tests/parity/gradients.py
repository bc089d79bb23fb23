"""Gradients of stock and overlaid twins in fp64, fp32 and bf16, of language, encoder and vision models."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor

from examples.tiny_models import build, tiny_config
from tests.parity import twins

ARCHITECTURES = ("llama", "qwen3", "gemma3", "mixtral", "qwen3_moe", "gpt_oss", "bert", "vit")
"""gemma3, mixtral and gpt_oss have sliding windows, shorter than the sequences here."""
LENGTH = 20
_ALL_EXPERTS = {
    "mixtral": {"num_experts_per_tok": 4},
    "qwen3_moe": {"num_experts_per_tok": 6},
    "gpt_oss": {"num_experts_per_tok": 4},
}
"""A router's choice flips at near ties by rounding alone, and gradients with it: here every expert is chosen."""
Gradients = dict[str, Tensor]


def _config(architecture: str, layers: int) -> Any:
    if architecture == "bert":
        from transformers import BertConfig

        sizes = {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4}
        return BertConfig(**sizes, intermediate_size=96, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    if architecture == "vit":
        from transformers import ViTConfig

        sizes = {
            "image_size": 20,
            "patch_size": 4,
            "hidden_size": 64,
            "num_hidden_layers": layers,
            "intermediate_size": 96,
        }
        return ViTConfig(
            **sizes, num_attention_heads=4, num_labels=5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
    return tiny_config(architecture, num_hidden_layers=layers, **_ALL_EXPERTS.get(architecture, {}))


def _class(architecture: str, module: Any) -> Any:
    name = {"bert": "BertForMaskedLM", "vit": "ViTForImageClassification"}.get(architecture)
    return twins.causal_class(module) if name is None else getattr(module, name)


def implementation(architecture: str) -> str:
    """sdpa, or what the architecture has instead."""
    return "eager" if architecture == "gpt_oss" else "sdpa"


@functools.cache
def _state(architecture: str, layers: int) -> tuple[Any, dict[str, Tensor]]:
    """The config and seeded weights that bfloat16 represents, so that every dtype has the same model."""
    config = _config(architecture, layers)
    model = build(config, model_class=_class(architecture, twins.stock_module(architecture)))
    return model.config, {name: value.bfloat16().float() for name, value in model.state_dict().items()}


@functools.cache
def model(architecture: str, overlaid: bool, dtype: torch.dtype, layers: int = 2, attention: str = "") -> Any:
    """A stock or overlaid model, in training mode; shared."""
    module = twins.overlay_module(architecture) if overlaid else twins.stock_module(architecture)
    config, state = _state(architecture, layers)
    made = _class(architecture, module)._from_config(copy.deepcopy(config)).to(dtype)
    made.load_state_dict(state)
    made.set_attn_implementation(attention or implementation(architecture))
    return made.train()


def inputs(architecture: str, batch: str, dtype: torch.dtype, length: int = LENGTH) -> dict[str, Tensor]:
    """What the model is called with, labels included: a batch that is "plain", "padded" on the left, labels too, or
    "packed", several texts in each row, which the position ids tell apart.
    """
    generator = torch.Generator().manual_seed(5)
    if architecture == "vit":
        pixels = torch.randn(2, 3, 20, 20, generator=generator)
        return {"pixel_values": pixels.bfloat16().to(dtype), "labels": torch.tensor([1, 3])}
    ids = torch.randint(3, 128, (2, length), generator=generator)
    given = {"input_ids": ids, "labels": ids.clone()}
    if batch == "padded":
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        given["attention_mask"] = mask
        given["labels"][mask == 0] = -100
    elif batch == "packed":
        ends = torch.tensor([[0, length // 3], [0, length // 2]])
        place = torch.arange(length).expand(2, -1)
        given["position_ids"] = torch.where(place < ends[:, 1:], place, place - ends[:, 1:])
        given["labels"].scatter_(1, ends, -100)  # the first word of a text is not foretold by the text before
    return given


def step(trained: Any, given: dict[str, Tensor]) -> Gradients:
    """The gradients of one training step."""
    trained.zero_grad(set_to_none=True)
    extra = {} if "pixel_values" in given or type(trained).__name__.startswith("Bert") else {"use_cache": False}
    trained(**given, **extra).loss.backward()
    found = {name: p.grad.detach().clone() for name, p in trained.named_parameters() if p.grad is not None}
    trained.zero_grad(set_to_none=True)
    return found


@functools.cache
def stock(
    architecture: str, batch: str, dtype: torch.dtype, layers: int = 2, length: int = LENGTH, attention: str = ""
) -> Gradients:
    """Stock's gradients; shared."""
    return step(model(architecture, False, dtype, layers, attention), inputs(architecture, batch, dtype, length))


def overlay(architecture: str, batch: str, dtype: torch.dtype, layers: int = 2, length: int = LENGTH) -> Gradients:
    """The overlaid model's, under the toggles of the moment."""
    return step(model(architecture, True, dtype, layers), inputs(architecture, batch, dtype, length))


def distance(found: Gradients, right: Gradients) -> float:
    """Of all parameters' gradients together, relative."""
    assert found.keys() == right.keys()
    error = sum(float((found[name].double() - right[name].double()).square().sum()) for name in right)
    size = sum(float(value.double().square().sum()) for value in right.values())
    return float((error / size) ** 0.5)


def worst(found: Gradients, right: Gradients, exact: Gradients) -> tuple[float, str]:
    """The largest relative distance of one parameter's gradient, and its name.

    One that is zero in ``exact``, fp64, is all rounding (the bias of a key, which the softmax does not see), and
    is measured against all gradients together.
    """
    assert found.keys() == right.keys()
    size = {name: float(value.double().norm()) for name, value in right.items()}
    whole = sum(norm**2 for norm in size.values()) ** 0.5
    scale = {name: whole if float(exact[name].norm()) < 1e-9 * whole else size[name] for name in right}
    return max((float((found[n].double() - right[n].double()).norm()) / scale[n], n) for n in right)
