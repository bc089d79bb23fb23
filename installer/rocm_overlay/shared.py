"""Modules of amd_ops that need only the standard library, read from their files: importing amd_ops imports torch."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any


def rules() -> Any:
    """Return ``amd_ops/toggle_rules.py`` as a module. RuntimeError where amd_ops is not beside this package."""
    return _module("toggle_rules")


def folders() -> Any:
    """Return ``amd_ops/folders.py`` as a module. RuntimeError where amd_ops is not beside this package."""
    return _module("folders")


def tolerances() -> Any:
    """Return ``amd_ops/tolerances.py`` as a module. RuntimeError where amd_ops is not beside this package."""
    return _module("tolerances")


@cache
def _module(name: str) -> Any:
    package = importlib.util.find_spec("amd_ops")
    if package is None or package.origin is None:
        raise RuntimeError("amd_ops is missing beside rocm_overlay: transformers-rocm-overlay is not installed whole")
    alias = f"_amd_ops_{name}"
    spec = importlib.util.spec_from_file_location(alias, Path(package.origin).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module
