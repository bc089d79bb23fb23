"""The ``kernels`` library (extra ``[hub]``), known here alone: kernels from its hub, our ready layers for it and for
transformers' own ``use_kernels``. Its versions differ; arguments follow the signatures found.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import KernelLoadError, RegistrationError

INSTALL = "the kernels library is not installed: pip install 'transformers-rocm-overlay[hub]'"


@lru_cache(maxsize=1)
def library() -> ModuleType:
    """Import the kernels library.

    Raises KernelLoadError when it is missing or cannot be imported beside the installed huggingface_hub.
    """
    try:
        return importlib.import_module("kernels")
    except ModuleNotFoundError as error:
        if error.name == "kernels":
            raise KernelLoadError(INSTALL) from error
        raise KernelLoadError(f"the kernels library cannot be imported: {error}") from error
    except Exception as error:
        raise KernelLoadError(f"the kernels library cannot be imported: {type(error).__name__}: {error}") from error


def version() -> str:
    """Return the installed version of the kernels library, '' without one."""
    try:
        return importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        return ""


def get_kernel(repo_id: str, revision: str | None, version_: int | str | None, trust_remote_code: bool) -> ModuleType:
    """Download (or take from the cache) a hub kernel and import it.

    Every failure - no library, no network and no cached copy, unknown revision, no build for this machine, an import
    error in the kernel - is a KernelLoadError with the library's own words.
    """
    what = f"{repo_id} ({revision if revision is not None else f'version {version_}'})"
    kernels = library()
    accepted = inspect.signature(kernels.get_kernel).parameters
    arguments: dict[str, Any] = {"revision": revision} if version_ is None else {"version": _integer(version_, what)}
    if trust_remote_code:
        if "trust_remote_code" not in accepted:
            raise KernelLoadError(f"{what}: kernels {version()} has no trust_remote_code; it trusts every repository")
        arguments["trust_remote_code"] = True
    try:
        module: ModuleType = kernels.get_kernel(repo_id, **arguments)
    except Exception as error:
        first = str(error).strip().splitlines() or [""]
        raise KernelLoadError(
            f"{what}: kernels {version()} cannot load it: {type(error).__name__}: {first[0]}"
        ) from error
    return module


def _integer(value: int | str, what: str) -> int | str:
    """Versions are integers for kernels >= 0.17 and may be specifiers for older ones."""
    if isinstance(value, int) or value.isdigit():
        return int(value)
    parameter = inspect.signature(library().get_kernel).parameters.get("version")
    if parameter is not None and "str" in str(parameter.annotation):
        return value
    raise KernelLoadError(f"{what}: kernels {version()} numbers kernel versions by integers, found {value!r}")


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
    kernels = library()
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
