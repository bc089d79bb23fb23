"""The only file that knows the ``kernels`` library (extra ``[hub]``). Its versions differ; arguments follow the
signatures found.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from functools import lru_cache
from types import ModuleType
from typing import Any

from .errors import KernelLoadError

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
