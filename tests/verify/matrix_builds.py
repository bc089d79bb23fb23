"""What one build of the modeling files gives for a small model: run in a process of its own, with one build loaded.

A causal model, an encoder or a vision model is a small configuration with the cases of `overlay verify`. A composite
(text and images, say), or one that stock cannot run so, is the classes of its file, shrunk and fed as in
`tests.numeric`.
"""

from __future__ import annotations

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
DOUBLED = "gfx942"
"""The chip that the double of aiter poses as."""
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
How = tuple[str, str]
"""Scale and style of a class of a composite, see `tests.numeric.worker.trial`."""


@dataclass
class Subject:
    """A model, made in float32 or bfloat16, and its cases by name.

    In half precision a token goes to every expert: where two score alike, one rounding chooses the other.
    """

    make: Callable[[torch.dtype], torch.nn.Module]
    cases: dict[str, Run]


@dataclass
class Results:
    """Outputs by dtype or column and case; a text says what stopped a case. ``ops``: how many of ours ran, by column.

    ``exact`` holds stock in fp32 on the weights of ``bfloat16``; ``how`` the classes that stock can run.
    """

    outputs: dict[str, dict[str, Outputs | str]] = field(default_factory=dict)
    ops: dict[str, int] = field(default_factory=dict)
    how: dict[str, How] = field(default_factory=dict)
    failed: str = ""


def dtype_of(column: str) -> str:
    """The aiter double computes in half precision only."""
    return "bfloat16" if column == "aiter double" else "float32"


def stock(model: str, path: str) -> Results:
    """Run stock in float32, bfloat16, and exactly on bfloat16's weights."""
    reasons = []
    for plain in (True, False):
        if plain and _is_composite(model):
            continue
        try:
            found = _stock(model, path, {} if plain else _tried(path))
        except Exception as error:  # noqa: BLE001 - stock's own code: the reason is the row
            reasons.append(f"{type(error).__name__}: {str(error)[:80]}")
            continue
        if any(not isinstance(one, str) for one in found.outputs["float32"].values()):
            return found
        reasons.append("no case runs")
    return Results(failed="; ".join(reasons))


def _stock(model: str, path: str, how: dict[str, How]) -> Results:
    found = Results(how=how)
    for name in ("float32", "bfloat16", "exact"):
        found.outputs[name] = {}
        for subject in _subjects(model, path, how):
            made = subject.make(torch.float32 if name == "float32" else torch.bfloat16)
            _run_cases(subject, made.float() if name == "exact" else made, found.outputs[name])
    return found


def overlaid(model: str, path: str, how: dict[str, How]) -> Results:
    """Run the overlay under the settings of every column; ``how`` is what stock's results say."""
    found = Results()
    module = importlib.import_module(worker.module_name(path))
    assert module.__amd_overlay__, f"{path} is stock"
    subjects = _subjects(model, path, how)
    for column, tiers in COLUMNS.items():
        settings = {} if tiers is None else {**ON, "tiers": tiers}
        aiter = column == "aiter double"
        double: AbstractContextManager[Any] = fake_aiter("v0.1.20.post1", DOUBLED, 304) if aiter else nullcontext()
        outputs = found.outputs[column] = {}
        amd_ops.reset_counters()
        with double, amd_ops.override(**settings):
            for subject in subjects:
                _run_cases(subject, subject.make(getattr(torch, dtype_of(column))), outputs)
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


def _subjects(model: str, path: str, how: dict[str, How]) -> list[Subject]:
    if not how:
        return [_plain(model)]
    module = importlib.import_module(worker.module_name(path))
    return [_shrunk(getattr(module, name), *one) for name, one in how.items()]


def _is_composite(model: str) -> bool:
    """Some models have several parts, and some files belong to no configuration of that name."""
    if model not in transformers.CONFIG_MAPPING:
        return True
    config = transformers.CONFIG_MAPPING[model]()
    return any(getattr(config, part, None) is not None for part in ("text_config", "vision_config"))


def small_config(model: str, *, every_expert: bool) -> Any:
    """Return a small configuration of a model type that is no composite."""
    config_class = transformers.CONFIG_MAPPING[model]
    default = config_class()
    values: dict[str, Any] = {**_TINY, **_TINY_EXTRA.get(model, {"head_dim": 16})}
    values.update({name: value for name, value in {**EXPERTS, **SPARE}.items() if hasattr(default, name)})
    if every_expert:
        values["num_experts_per_tok"] = values.get(
            "num_local_experts", values.get("num_experts", EXPERTS["num_experts"])
        )
    known = {name: value for name, value in values.items() if hasattr(default, name) or name in ("pad_token_id",)}
    # Dropout in the training step would draw numbers in another order where two calls became one.
    known.update({name: 0.0 for name in vars(default) if "dropout" in name or name.endswith("_pdrop")})
    return config_class(**known)


def _plain(model: str) -> Subject:
    def make(dtype: torch.dtype) -> torch.nn.Module:
        config = small_config(model, every_expert=dtype is not torch.float32)
        made = model_class(config)._from_config(config, attn_implementation="eager")
        randomise(made, 0)
        result: torch.nn.Module = made.to(dtype).eval()
        return result

    kind = kind_of(make(torch.float32))
    return Subject(make, {name: _case(name) for name in NAMES if kind in CASES[name].kinds})


def _case(name: str) -> Run:
    return lambda model: CASES[name].run(model, Inputs.for_model(model, seed=7))


def _tried(path: str) -> dict[str, How]:
    """The classes of a file that stock can run; raises what stopped the first when it runs none."""
    module = importlib.import_module(worker.module_name(path))
    how: dict[str, How] = {}
    first: Exception | None = None
    for kind in worker.classes(module):
        try:
            scale, style, *_ = worker.trial(kind, module.__file__)
            how[kind.__name__] = (scale, style)
        except Exception as error:  # noqa: BLE001 - another class may run
            first = first or error
    if not how:
        raise first or LookupError("the file has no model")
    return how


def _shrunk(kind: type, scale: str, style: str) -> Subject:
    def make(dtype: torch.dtype) -> torch.nn.Module:
        return worker.one_model(kind, str(dtype).removeprefix("torch."), scale)

    def tokens(model: torch.nn.Module) -> Outputs:
        if next(model.parameters()).dtype is not torch.float32:
            raise ValueError("a token that half precision chooses by a near tie says nothing")
        return worker.one_run(model, "generation", style)

    name = kind.__name__
    return Subject(make, {name: lambda model: worker.one_run(model, "", style), f"{name} tokens": tokens})
