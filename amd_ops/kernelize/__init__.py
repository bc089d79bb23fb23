"""Layer- and function-level replacement for models that have no overlay, for functions, and for users who must not
touch files.

    register_layer_kernel("MyMLP", repo_path="kernels", package_name="my_kernels", layer_name="FastMLP", device="rocm")
    register_external_layer(TheirMLP, "MyMLP")
    kernelize_model(model, mode="inference")      # and unkernelize_model(model)

See docs/kernelize.md.
"""

from __future__ import annotations

from typing import Any

from . import overlay_models, ready
from .conditions import DeviceSpec, Mode
from .config import register_kernels, use_kernels
from .errors import KernelizeError, KernelLoadError, KernelUnavailable, RegistrationError, SignatureError
from .forwards import Guard
from .function import apply_function_kernel, restore_function_kernels
from .hub import hub_repository, kernels_mapping
from .layers import kernelize_model, kernelize_report, kernelized, unkernelize_model
from .overlay_models import apply_overlay_kernels, revert_overlay_kernels
from .registry import (
    Registry,
    current_registry,
    register_external_layer,
    register_function_kernel,
    register_layer_kernel,
)
from .report import KernelizeReport

ready.add_to(current_registry())

__all__ = [
    "DeviceSpec",
    "Guard",
    "KernelLoadError",
    "KernelUnavailable",
    "KernelizeError",
    "KernelizeReport",
    "Mode",
    "RegistrationError",
    "Registry",
    "SignatureError",
    "apply_function_kernel",
    "apply_overlay_kernels",
    "hub_repository",
    "kernelize_model",
    "kernelize_report",
    "kernelized",
    "kernels_mapping",
    "register_external_layer",
    "register_function_kernel",
    "register_kernels",
    "register_layer_kernel",
    "restore_function_kernels",
    "revert_overlay_kernels",
    "unkernelize_model",
    "use_kernels",
]


def __getattr__(name: str) -> Any:
    """``apply_overlay_kernels_to_<model>`` and ``revert_overlay_kernels_from_<model>`` are made when they are asked
    for.
    """
    if name.startswith(("apply_overlay_kernels_to_", "revert_overlay_kernels_from_")):
        return getattr(overlay_models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *overlay_models.names()])
