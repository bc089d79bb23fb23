"""What one installed double knows and records: version, fake device, faults, calls, violations."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from .catalog import Catalog

Corruption = Callable[[torch.Tensor], torch.Tensor]
Alteration = Callable[[dict[str, Any]], dict[str, Any]]  # arguments -> the arguments to replace

ASM_ARCHES = ("gfx942", "gfx950")


class Violation(RuntimeError):
    """A call that real aiter would refuse, or worse, answer with garbage."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape, dtype, strides and device of one tensor argument as the kernel saw it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...]
    device: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        return cls(tuple(tensor.shape), tensor.dtype, tuple(tensor.stride()), tensor.device.type)


@dataclass(frozen=True)
class Call:
    """One call that reached aiter: ``kind`` is "op" (torch.ops.aiter) or "function" (its Python layer)."""

    name: str
    kind: str
    arguments: Mapping[str, Any]

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]


@dataclass
class Faults:
    """Ways in which a real installation is broken.

    import_error:  raised by ``import aiter`` (real: RuntimeError, AssertionError, FileNotFoundError, KeyError).
    module_errors: submodule -> raised by its import while others work (real: tuned_gemm without pandas).
    gone:          submodules that a release has deleted or renamed: nothing imports them, nothing re-exports them.
    raises:        op or function name -> exception that it raises when called (a kernel that does not build).
                   Functions of aiter.ops.triton are named with a leading "triton.", here and below.
    wrong:         op name -> what to do to its result, without raising (a miscompiled kernel).
    altered:       op name -> what to do to its arguments, without raising (a kernel that ignores or confuses one).
    missing:       op and function names that do not exist.
    schema_from:   op or function name -> tag whose older or newer form it has.
    """

    import_error: Exception | None = None
    module_errors: dict[str, Exception] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    raises: dict[str, Exception] = field(default_factory=dict)
    wrong: dict[str, Corruption] = field(default_factory=dict)
    altered: dict[str, Alteration] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    schema_from: dict[str, str] = field(default_factory=dict)


@dataclass
class Double:
    """The installed stand-in."""

    catalog: Catalog
    arch: str
    cu_count: int
    device_type: str
    faults: Faults
    calls: list[Call] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    marked: int = 0  # launches of the GEMM with a shuffled weight
    shuffled: list[Any] = field(default_factory=list)  # storages that shuffle_weight produced

    @property
    def version(self) -> str:
        return self.catalog.version

    def load(self, module: str = "aiter") -> ModuleType:
        """Import one of the package's modules, as a caller would."""
        return importlib.import_module(module)

    def record(self, name: str, kind: str, arguments: Mapping[str, Any]) -> None:
        seen = {key: TensorSpec.of(item) if isinstance(item, torch.Tensor) else item for key, item in arguments.items()}
        self.calls.append(Call(name, kind, seen))

    def called(self, name: str, kind: str | None = None) -> list[Call]:
        """The recorded calls of ``name``, oldest first."""
        return [call for call in self.calls if call.name == name and kind in (None, call.kind)]

    def kernels(self) -> list[str]:
        """Names of the ops (not Python wrappers) that ran, in order."""
        return [call.name for call in self.calls if call.kind == "op"]

    def clear(self) -> None:
        """Forget the recorded calls (violations stay)."""
        self.calls.clear()

    def require(self, condition: bool, message: str) -> None:
        """Record and raise a Violation unless ``condition`` holds."""
        if not condition:
            self.violations.append(message)
            raise Violation(message)
