"""What one build of the modeling files gives for a small model: run in a process of its own, with one build loaded.

A causal model, an encoder or a vision model is a small configuration with the cases of `overlay verify`. A composite
(text and images, say) is every class of its file, shrunk and fed as in `tests.numeric`.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from rocm_overlay.verify.cases import CASES, Outputs
from rocm_overlay.verify.inputs import Inputs, kind_of
from rocm_overlay.verify.models import model_class, randomise

import amd_ops
from examples.tiny_models import _TINY, _TINY_EXTRA
from tests.doubles.aiter import fake_aiter
from tests.numeric import worker

ON = {"use_fused_projections": 1, "use_optimized_ops": 1, "use_aiter_attention": 1, "use_aiter_gemm": 1}
NAMES = ("forward", "prefill", "decode", "padded", "padded-encoder", "greedy", "generate", "training-step")
COLUMNS = {"off": None, "torch tier": "torch,eager", "eager tier": "eager", "aiter double": "aiter,torch,eager"}
"""Column by column: the tiers, None with every toggle off."""

# Sizes that belong to a kind of configuration; a class that does not know a name keeps it as an attribute.
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
           "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}  # fmt: skip
SPARE = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
         "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
         "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
         "image_size": 32, "patch_size": 8, "n_embd": 64, "n_head": 4, "n_layer": 2, "word_embed_proj_dim": 64,
         "ffn_dim": 96, "embedding_size": 64}  # fmt: skip

Run = Callable[[torch.nn.Module], Outputs]


@dataclass
class Subject:
    """A float32 model in evaluation mode, and its cases by name."""

    model: torch.nn.Module
    cases: dict[str, Run] = field(default_factory=dict)


@dataclass
class Results:
    """Outputs by dtype or column and case; a text says what stopped a case. ``ops``: how many of ours ran, by column.

    ``exact`` holds stock in fp32 on the weights of ``bfloat16``; ``experts`` by case: the model chooses experts.
    """

    outputs: dict[str, dict[str, Outputs | str]] = field(default_factory=dict)
    ops: dict[str, int] = field(default_factory=dict)
    experts: dict[str, bool] = field(default_factory=dict)
    failed: str = ""


def dtype_of(column: str) -> str:
    """The aiter double computes in half precision only."""
    return "bfloat16" if column == "aiter double" else "float32"


def stock(model: str, path: str) -> Results:
    """Run stock in float32, bfloat16, and exactly on bfloat16's weights."""
    found = Results()
    try:
        subjects = _subjects(model, path)
    except Exception as error:  # noqa: BLE001 - stock's own code: the reason is the row
        found.failed = f"{type(error).__name__}: {str(error)[:80]}"
        return found
    for name in ("float32", "bfloat16", "exact"):
        found.outputs[name] = {}
        for subject in subjects:
            half = subject.model if name == "float32" else copy.deepcopy(subject.model).to(torch.bfloat16)
            _run_cases(subject, half.float() if name == "exact" else half, found.outputs[name])
    for subject in subjects:
        kinds = {type(module).__name__ for module in subject.model.modules()}
        mixes = any("Expert" in kind or "Sparse" in kind for kind in kinds)
        found.experts.update(dict.fromkeys(subject.cases, mixes))
    return found


def overlaid(model: str, path: str) -> Results:
    """Run the overlay under the settings of every column."""
    found = Results()
    subjects = _subjects(model, path)
    module = importlib.import_module(_module(path))
    assert module.__amd_overlay__, f"{path} is stock"
    for column, tiers in COLUMNS.items():
        settings = {} if tiers is None else {**ON, "tiers": tiers}
        aiter = column == "aiter double"
        double: AbstractContextManager[Any] = fake_aiter("v0.1.20.post1", "gfx942", 304) if aiter else nullcontext()
        outputs = found.outputs[column] = {}
        amd_ops.reset_counters()
        with double, amd_ops.override(**settings):
            for subject in subjects:
                _run_cases(subject, copy.deepcopy(subject.model).to(getattr(torch, dtype_of(column))), outputs)
            rows = amd_ops.report().as_dict()["ops"]
        tier = column.split()[0]
        found.ops[column] = sum(any(t["tier"] == tier and t["calls"] for t in row["tiers"]) for row in rows)
    return found


def _run_cases(subject: Subject, model: torch.nn.Module, outputs: dict[str, Outputs | str]) -> None:
    for name, run in subject.cases.items():
        try:
            outputs[name] = run(model)
        except Exception as error:  # noqa: BLE001 - what stops a case is what is compared
            outputs[name] = f"{type(error).__name__}: {str(error)[:80]}"


def _module(path: str) -> str:
    return "transformers." + path.removesuffix(".py").replace("/", ".")


def _subjects(model: str, path: str) -> list[Subject]:
    if model in transformers.CONFIG_MAPPING:
        config_class = transformers.CONFIG_MAPPING[model]
        if not _is_composite(config_class()):
            return [_plain(small_config(model))]
    return [_shrunk(kind) for kind in worker.classes(importlib.import_module(_module(path)))]


def _is_composite(config: Any) -> bool:
    return any(getattr(config, part, None) is not None for part in ("text_config", "vision_config"))


def small_config(model: str) -> Any:
    """Return a small configuration of a model type that is no composite."""
    config_class = transformers.CONFIG_MAPPING[model]
    default = config_class()
    values: dict[str, Any] = {**_TINY, **_TINY_EXTRA.get(model, {"head_dim": 16})}
    values.update({name: value for name, value in {**EXPERTS, **SPARE}.items() if hasattr(default, name)})
    known = {name: value for name, value in values.items() if hasattr(default, name) or name in ("pad_token_id",)}
    # Dropout in the training step would draw numbers in another order where two calls became one.
    known.update({name: 0.0 for name in vars(default) if "dropout" in name or name.endswith("_pdrop")})
    return config_class(**known)


def _plain(config: Any) -> Subject:
    model = model_class(config)._from_config(config, attn_implementation="eager")
    randomise(model, 0)
    model = model.float().eval()
    return Subject(model, {name: _case(name) for name in NAMES if kind_of(model) in CASES[name].kinds})


def _case(name: str) -> Run:
    return lambda model: CASES[name].run(model, Inputs.for_model(model, seed=7))


def _shrunk(kind: type) -> Subject:
    def run(model: torch.nn.Module) -> Outputs:
        # A token that half precision chooses by a near tie says nothing.
        return worker.outputs(model, tokens=next(model.parameters()).dtype is torch.float32)

    return Subject(worker.new_model(kind).float(), {kind.__name__: run})
