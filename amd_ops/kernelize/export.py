"""Our ready layers for the kernels library and for transformers' own ``use_kernels``: a local repository and a mapping
to it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import hub
from .errors import RegistrationError

PACKAGE = "amd_ops_layers"
# The names under which models ask the kernels library for a layer, and ours for them.
LAYERS = {
    "RMSNorm": "AmdRMSNorm",
    "SiluAndMul": "AmdSiluAndMul",
    "GeluAndMul": "AmdGeluAndMul",
    "rotary_pos_emb": "AmdRotaryEmbedding",
}
# What the kernels library calls capability: 9.4 and 9.5 are gfx942 and gfx950.
ROCM_CAPABILITIES = (94, 95)


def hub_repository() -> Path:
    """Return the folder of the local kernel repository; it has the layout that kernels 0.12 and 0.17 both load.

    ``KernelConfig({"RMSNorm": f"{hub_repository()}:AmdRMSNorm"}, use_local_kernel=True)`` in transformers 5.
    """
    return Path(__file__).resolve().parent / "hub_repository"


def kernels_mapping(
    devices: Iterable[str] = ("rocm",), layers: Iterable[str] = tuple(LAYERS)
) -> dict[str, dict[Any, Any]]:
    """Return a mapping for ``kernels.register_kernel_mapping`` or ``kernels.use_kernel_mapping``.

    ``rocm`` is limited to gfx942 and gfx950, where our kernels are built for. Raises KernelLoadError without the
    kernels library, RegistrationError for an unknown device or layer.
    """
    kernels = hub.library()
    accepted = inspect.signature(kernels.LocalLayerRepository.__init__).parameters
    package = {"package_name": PACKAGE} if "package_name" in accepted else {}
    mapping: dict[str, dict[Any, Any]] = {}
    for name in layers:
        if name not in LAYERS:
            raise RegistrationError(f"kernels_mapping: unknown layer {name!r}; ours are {', '.join(LAYERS)}")
        repository = kernels.LocalLayerRepository(repo_path=hub_repository(), layer_name=LAYERS[name], **package)
        mapping[name] = {_device(kernels, device): repository for device in devices}
    return mapping


def _device(kernels: Any, device: str) -> Any:
    if device == "cpu":
        return kernels.Device(type="cpu")
    if device != "rocm":
        raise RegistrationError(f"kernels_mapping: unknown device {device!r}; use rocm or cpu")
    low, high = ROCM_CAPABILITIES
    # Public from kernels 0.13 on; before that only its module has it.
    properties = getattr(kernels, "ROCMProperties", None) or kernels.layer.device.ROCMProperties
    return kernels.Device(type="rocm", properties=properties(min_capability=low, max_capability=high))
