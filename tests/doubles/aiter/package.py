"""The importable package ``aiter``: modules appear, and ops are registered, only when something imports them."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

import torch

from . import registry, triton
from .catalog import ENUMS
from .state import Double

# Submodules whose names the package re-exports on ``import aiter``; tuned_gemm is imported on request only.
EXPORTED = ("aiter.ops.mha", "aiter.ops.activation", "aiter.ops.rmsnorm", "aiter.ops.rope", "aiter.ops.shuffle")
PACKAGES = ("aiter", "aiter.ops")
MODULES = (*PACKAGES, *EXPORTED, "aiter.tuned_gemm", "aiter.fused_moe")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves the fake package; a meta path entry and its own loader."""

    def __init__(self, double: Double, library: torch.library.Library) -> None:
        self.double = double
        self.library = library

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        known = {*MODULES, *self.double.catalog.triton_modules} - self.double.faults.gone
        if fullname not in known or any(fullname.startswith(f"{gone}.") for gone in self.double.faults.gone):
            return None
        package = fullname in PACKAGES or any(name.startswith(f"{fullname}.") for name in known)
        return importlib.machinery.ModuleSpec(fullname, self, origin="double", is_package=package)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        self.double.imports.append(name)
        if name == "aiter" and self.double.faults.import_error is not None:
            raise self.double.faults.import_error
        if name in self.double.faults.module_errors:
            raise self.double.faults.module_errors[name]
        if name in self.double.catalog.triton_modules:
            module.__dict__.update(triton.functions(self.double, name))
            return
        registry.register_ops(self.double, self.library, name)
        functions = registry.python_functions(self.double, name)
        if name == "aiter.tuned_gemm":
            module.__dict__["tgemm"] = SimpleNamespace(mm=functions.pop("mm"))
        module.__dict__.update(functions)
        if name == "aiter":
            module.__dict__.update(ENUMS)
            for exported in EXPORTED:
                if exported in self.double.faults.gone:
                    continue
                public = vars(importlib.import_module(exported)).items()
                module.__dict__.update({key: item for key, item in public if not key.startswith("_")})


def installed() -> dict[str, ModuleType]:
    """The modules of any aiter that are imported right now."""
    return {name: module for name, module in sys.modules.items() if name == "aiter" or name.startswith("aiter.")}
