"""Inputs and cases for every kind of model: stock runs them all, and running them twice gives the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from rocm_overlay.verify.cases import CASES
from rocm_overlay.verify.compare import same_bits
from rocm_overlay.verify.inputs import Inputs, kind_of
from rocm_overlay.verify.models import fingerprint, model_class, nan_weights, randomise

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert() -> Any:
    return transformers.BertConfig(**SMALL)


def bart() -> Any:
    return transformers.BartConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
    )  # fmt: skip


def vit() -> Any:
    return transformers.ViTConfig(**{**SMALL, "image_size": 16, "patch_size": 8})


def llava() -> Any:
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
    )
    text = transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
    return transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=60, image_seq_length=4)


def llama() -> Any:
    return transformers.LlamaConfig(**SMALL, num_key_value_heads=2)


KINDS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "encoder": (bert, {"forward", "padded-encoder", "hidden-states-of", "attentions-of", "training-step-of"}),
    "seq2seq": (bart, {"forward", "padded-encoder", "generate", "generate-beam", "hidden-states-of", "attentions-of"}),
    "vision": (vit, {"forward", "hidden-states-of", "attentions-of", "training-step-of"}),
    "vlm": (llava, {"forward", "generate", "hidden-states-of", "training-step-of"}),
    "causal": (llama, {"prefill", "sampling", "updated-weights", "hooks", "adapter", "rounding", "sliding-cache"}),
}


def made(config: Any) -> Any:
    model = model_class(config)._from_config(config, attn_implementation="eager")
    randomise(model, 0)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_fed_and_run(kind: str) -> None:
    make, expected = KINDS[kind]
    model = made(make())
    assert kind_of(model) == kind
    inputs = Inputs.for_model(model, seed=3, new_tokens=3)
    for name in expected:
        case = CASES[name]
        assert kind in case.kinds
        first, second = case.run(model, inputs), case.run(model, inputs)
        assert first
        assert all(same_bits(first[key], second[key]) for key in first), f"{name} is not deterministic"
        assert all(value.isfinite().all() for value in first.values() if value.is_floating_point())


@pytest.mark.parametrize("name", ["updated-weights", "hooks", "adapter"])
def test_a_case_leaves_the_model_as_it_was(name: str) -> None:
    model = made(llama())
    inputs = Inputs.for_model(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    CASES[name].run(model, inputs)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(module._forward_hooks for module in model.modules())


def test_nan_weights_are_named_and_checkpoints_told_apart() -> None:
    model = made(llama())
    before = fingerprint(model)
    assert nan_weights(model) == []
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    assert nan_weights(model) == ["model.norm.weight"]
    assert fingerprint(model) != before


def test_a_configuration_that_does_not_say_enough() -> None:
    config = llava()
    config.vision_config.image_size = None
    with pytest.raises(ValueError, match="names no image_size"):
        Inputs.for_model(_Named(config))


class _Named:
    """As much of a model as the input builder asks before it needs pixels."""

    main_input_name = "input_ids"
    device = torch.device("cpu")

    def __init__(self, config: Any) -> None:
        self.config = config

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> None:
        """Only its signature is read."""
