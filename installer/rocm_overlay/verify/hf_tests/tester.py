"""Copied into the laid-out test tree: builds the small models that the mixin of the sdist is run on.

Runs in the interpreter under test, where ``tests.test_modeling_common`` is the sdist's own file.
"""

import unittest
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "attention_dropout": 0.0, "initializer_range": 0.02,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
}  # fmt: skip


class Tester:
    """What the mixin calls ``model_tester``; the names of its attributes and methods are the mixin's."""

    def __init__(self, parent: Any, model_type: str) -> None:
        self.parent = parent
        self.model_type = model_type
        self.batch_size, self.seq_length, self.is_training = 13, 7, True
        self.causal_lm_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config_class_of(model_type)]
        self.encoder_seq_length = self.key_length = self.seq_length
        for name, value in {**SIZES, **EXPERTS}.items():
            setattr(self, name, value)

    def get_config(self) -> Any:
        """Return a small configuration."""
        config_class = config_class_of(self.model_type)
        values = dict(SIZES)
        known = config_class()
        if hasattr(known, "num_experts_per_tok"):
            values["intermediate_size"] = 40  # torch's grouped product refuses rows of other than 16 bytes' multiples
        values.update({name: value for name, value in EXPERTS.items() if hasattr(known, name)})
        if getattr(known, "mlp_only_layers", None) is not None:
            values["decoder_sparse_step"] = 1
        return config_class(**values)

    def prepare_config_and_inputs(self) -> Any:
        """Return the configuration, ids and mask."""
        ids = torch.randint(3, SIZES["vocab_size"], (self.batch_size, self.seq_length))
        mask = torch.ones_like(ids)
        return self.get_config(), ids, mask

    def prepare_config_and_inputs_for_common(self) -> Any:
        """Return the configuration and a dictionary of inputs."""
        config, ids, mask = self.prepare_config_and_inputs()
        return config, {"input_ids": ids, "attention_mask": mask}


def config_class_of(model_type: str) -> Any:
    """Return the configuration class of a model type's causal language model: of its text part where it has several.

    The sizes above would not reach the parts of a composite, which then would be built as large as the original.
    """
    config_class = transformers.CONFIG_MAPPING[model_type]
    chosen = config_class.sub_configs.get("text_config", config_class)
    if chosen not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{model_type} has no causal language model of its own: these tests do not know it")
    return chosen


def make(model_type: str, *mixins: Any) -> Any:
    """Return a test class with the mixins' tests for a model type's base and causal classes."""
    config_class = config_class_of(model_type)
    base = transformers.MODEL_MAPPING[config_class]
    causal = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config_class]

    class ModelTest(*mixins, unittest.TestCase):  # type: ignore[misc]
        all_model_classes = (base, causal)
        test_headmasking = False
        test_pruning = False
        fx_compatible = False

        def setUp(self) -> None:
            torch.manual_seed(0)
            self.model_tester = Tester(self, model_type)

        def test_generation_tester_mixin_inheritance(self) -> None:
            self.skipTest("the generation mixin is not in the sdist")

    ModelTest.__name__ = ModelTest.__qualname__ = f"{base.__name__}Test"
    return ModelTest
