"""``aiter.ops.triton`` of the double: plain Python functions around Triton kernels, on any chip that Triton knows.

Stricter than the real ones where those answer wrongly without an error: gradients that would be missing, strides and
alignment that no one checks, a window of one key that counts as none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import catalog as catalogs
from .kernels import triton as kernels
from .kernels.guards import on_the_gpu
from .state import Double


def functions(double: Double, module: str) -> dict[str, Callable[..., Any]]:
    """The public functions of one module, with their real signatures; calls are recorded as ``triton.<name>``."""
    return {
        name: _function(double, name, parameters)
        for name, parameters in double.catalog.triton_functions_of(module).items()
        if f"triton.{name}" not in double.faults.missing
    }


def _function(double: Double, name: str, parameters: list[str]) -> Callable[..., Any]:
    signature = catalogs.python_signature(parameters)
    label = f"triton.{name}"

    def function(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        double.record(label, "op", arguments)
        if label in double.faults.raises:
            raise double.faults.raises[label]
        on_the_gpu(double, label, arguments)
        if label in double.faults.altered:
            arguments |= double.faults.altered[label](arguments)
        with torch.no_grad():
            result = kernels.KERNELS[name](double, label, arguments)
            corrupt = double.faults.wrong.get(label)
            if corrupt is not None:
                target: Tensor = result if isinstance(result, Tensor) else result[0] if result else arguments["out"]
                target.copy_(corrupt(target.clone()))
        return result

    function.__name__ = name
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function
