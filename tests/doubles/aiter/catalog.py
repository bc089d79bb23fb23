"""The contract of one aiter tag, read from ``schemas/<tag>.json``."""

from __future__ import annotations

import ast
import enum
import inspect
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .make_schemas import split_param

ActivationType = enum.Enum("ActivationType", {"No": -1, "Silu": 0, "Gelu": 1, "Swiglu": 2})
QuantType = enum.Enum("QuantType", ["No", "per_Tensor", "per_Token", "per_1x32", "per_1x128", "per_128x128"], start=0)
ENUMS: dict[str, Any] = {"ActivationType": ActivationType, "QuantType": QuantType}

SCHEMAS = Path(__file__).parent / "schemas"
TRITON = Path(__file__).parent / "triton_schemas.json"
BACKWARD = Path(__file__).parent / "backward_schemas.json"


@dataclass(frozen=True)
class Catalog:
    """Ops, Python signatures and behaviour switches of one tag."""

    version: str
    ops: dict[str, dict[str, Any]]
    functions: dict[str, list[str]]
    behaviour: dict[str, bool]
    triton: dict[str, Any]  # functions, cuts, cut: see make_triton_schemas.py

    def functions_of(self, module: str) -> dict[str, list[str]]:
        """``{function name: parameters}`` of one submodule."""
        return _owned(self.functions, module)

    def triton_functions_of(self, module: str) -> dict[str, list[str]]:
        """The same for a module of ``aiter.ops.triton``."""
        return _owned(self.triton["functions"], module)

    @property
    def triton_modules(self) -> set[str]:
        """Every module under ``aiter.ops.triton``, packages included."""
        homes = {path.rpartition(".")[0] for path in self.triton["functions"]}
        parts = [home.split(".") for home in homes]
        return {".".join(names[:length]) for names in parts for length in range(3, len(names) + 1)}

    def ops_of(self, module: str) -> list[str]:
        return [name for name, op in self.ops.items() if op["module"] == module]


@cache
def load(version: str) -> Catalog:
    """The catalogue of ``version``; LookupError names the modelled tags."""
    path = SCHEMAS / f"{version}.json"
    if not path.is_file():
        raise LookupError(f"no double of aiter {version}; modelled: {', '.join(versions())}")
    raw = json.loads(path.read_text())
    triton = json.loads(TRITON.read_text())[version]
    ops = raw["ops"] | json.loads(BACKWARD.read_text())[version]
    return Catalog(raw["version"], ops, raw["functions"], raw["behaviour"], triton)


def _owned(functions: dict[str, list[str]], module: str) -> dict[str, list[str]]:
    split = (path.rpartition(".") for path in functions)
    return {name: functions[f"{module}.{name}"] for owner, _, name in split if owner == module}


def versions() -> list[str]:
    return sorted((path.stem for path in SCHEMAS.glob("*.json")), key=_order)


def _order(tag: str) -> list[int]:
    return [int(part) for part in tag.removeprefix("v").replace("post", "").split(".")]


def python_signature(params: list[str]) -> inspect.Signature:
    """The real Python signature, so that positional order, keywords and defaults behave as in aiter."""
    parameters = []
    for text in params:
        name, kind, default = split_param(text)
        if name == "self":
            continue
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=inspect.Parameter.empty if default is None else _value(default),
                annotation=inspect.Parameter.empty if kind is None else kind,
            )
        )
    return inspect.Signature(parameters)


def _value(text: str) -> Any:
    """A default as a value. Members of aiter's enums are written by name; GateMode is only known by its value."""
    if text == "GateMode.SEPARATED.value":
        return "separated"
    owner, dot, member = text.partition(".")
    return getattr(ENUMS[owner], member) if dot and owner in ENUMS else ast.literal_eval(text)


def bind_schema(schema: torch.FunctionSchema, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a dispatcher call by name, defaults filled in (the dispatcher drops trailing defaults)."""
    bound = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    bound.update(zip((argument.name for argument in schema.arguments), args, strict=False))
    bound.update(kwargs)
    return bound
