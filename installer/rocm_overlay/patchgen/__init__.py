"""Stock transformers source and recipes in, overlay source out. Needs libcst (extra ``gen``); never imports torch."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("libcst") is None:
    raise ModuleNotFoundError(
        "generating overlays needs libcst, which is not installed: pip install libcst",
        name="libcst",
    )

from .config.generator import ModelingCodeGenerator
from .config.patches import ConfigError
from .config.spec import PatchConfig, create_patch_from_external

__all__ = ["ConfigError", "ModelingCodeGenerator", "PatchConfig", "create_patch_from_external"]
