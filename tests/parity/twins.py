"""Loads an overlaid modeling file as a second module beside the stock one, inside the same package."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import importlib.util
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rocm_overlay.install import catalog
from rocm_overlay.verify.cases import CASES, Inputs, Outputs

from examples.tiny_models import build, tiny_config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
IMPLEMENTATIONS = ("sdpa", "eager")
# Compiling has tests of its own; a cache of the size of the window exists for some models only.
LEFT_OUT = ("compiled", "sliding-cache")
RUNS = [
    (how, case.name)
    for how in IMPLEMENTATIONS
    for case in CASES.values()
    if (how == "eager" or not case.eager_only) and "causal" in case.kinds and case.name not in LEFT_OUT
]
INPUTS = Inputs.seeded(128, seed=7)

_staged = tempfile.TemporaryDirectory(prefix="overlay-twins-")


def overlay_text(architecture: str, stock: bytes) -> bytes:
    """Return the overlaid text made from this stock text of an architecture's modeling file."""
    wanted = hashlib.sha256(stock).hexdigest()
    entry = catalog.find(f"models/{architecture}/modeling_{architecture}.py", wanted)
    if entry is None:
        raise LookupError(f"no overlay for {architecture} with stock sha256 {wanted}")
    return entry.overlay_bytes()


def stock_module(architecture: str) -> ModuleType:
    """Import the stock modeling module."""
    return importlib.import_module(f"transformers.models.{architecture}.modeling_{architecture}")


@functools.cache
def overlay_module(architecture: str) -> ModuleType:
    """Load the overlaid text under a name of its own in the stock package, so that relative imports work."""
    stock = stock_module(architecture)
    assert stock.__file__ is not None
    text = overlay_text(architecture, Path(stock.__file__).read_bytes())
    return load_twin(architecture, text, "overlaid")


def load_twin(architecture: str, text: bytes, tag: str) -> ModuleType:
    """Execute ``text`` as ``transformers.models.<architecture>.modeling_<architecture>_<tag>``.

    The file lies at ``models/<architecture>/modeling_<architecture>.py``: transformers reads names from the path.
    """
    path = Path(_staged.name) / tag / "models" / architecture / f"modeling_{architecture}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    name = f"transformers.models.{architecture}.modeling_{architecture}_{tag}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def causal_class(module: ModuleType) -> Any:
    """Return the module's causal language model class."""
    (name,) = [name for name in module.__all__ if name.endswith("ForCausalLM")]
    return getattr(module, name)


def overlaid(architecture: str, config: Any, state: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """Build the overlaid model of ``config`` with the given weights, in eval mode."""
    model = causal_class(overlay_module(architecture))._from_config(copy.deepcopy(config)).to(dtype)
    model.load_state_dict(state)
    return model.eval()


@dataclass
class Pair:
    """A stock model and its overlaid twin with equal weights; stock's outputs are kept for every test that asks."""

    stock: Any
    overlay: Any
    references: dict[tuple[str, str], Outputs] = field(default_factory=dict)

    def set_implementation(self, implementation: str) -> None:
        """Switch both models to an attention implementation."""
        for model in (self.stock, self.overlay):
            model.set_attn_implementation(implementation)

    def reference(self, case: str, implementation: str) -> Outputs:
        """Return stock's outputs of a case."""
        key = case, implementation
        if key not in self.references:
            self.references[key] = outputs(self.stock, case, implementation)
        return self.references[key]

    def found(self, case: str, implementation: str) -> Outputs:
        """Return the overlaid model's outputs of a case, under the toggles of the moment."""
        return outputs(self.overlay, case, implementation)


def outputs(model: Any, case: str, implementation: str) -> Outputs:
    """Run a case on one attention implementation and leave the model on its own: it may be every test's."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        return CASES[case].run(model, INPUTS)
    finally:
        model.set_attn_implementation(before)


def new_pair(architecture: str, dtype: str, **overrides: Any) -> Pair:
    """Build a pair of its own, for tests that change the models."""
    stock = build(tiny_config(architecture, **overrides), dtype=DTYPES[dtype])
    return Pair(stock, overlaid(architecture, stock.config, stock.state_dict(), DTYPES[dtype]))


@functools.cache
def pair(architecture: str, dtype: str) -> Pair:
    """Return the session's pair: shared, so leave it as it was."""
    return new_pair(architecture, dtype)
