"""Overlays made on the fly for models that the bundle may not have yet."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import transformers
from rocm_overlay.overlays.recipes import recipe_set
from rocm_overlay.patchgen.engine import generate
from rocm_overlay.verify.target import Source


def generated(model: str) -> Source:
    """Generate the overlay of an installed modeling file with today's recipes."""
    path = f"models/{model}/modeling_{model}.py"
    stock = (Path(transformers.__file__).parent / path).read_bytes()
    result = generate(stock, path, recipe_set())
    assert result.changed, f"no recipe applies to {path}"
    return Source(
        module=f"transformers.models.{model}.modeling_{model}",
        path=path,
        stock_sha256=result.stock_sha256,
        overlay_sha256=hashlib.sha256(result.overlay).hexdigest(),
        installed="stock",
        stock=stock,
        overlay=result.overlay,
    )


def module_of(model: str) -> str:
    """Import the stock module and return its name."""
    return importlib.import_module(f"transformers.models.{model}.modeling_{model}").__name__
