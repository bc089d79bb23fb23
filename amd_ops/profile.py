"""What ``AMD_OPS`` names: ``off``, ``auto``, or a profile file that decides for the toggles that are unset.

A profile is ``{"schema": "amd-ops.profile/1", "toggles": {NAME: value, ...}}``. One that ``overlay qualify`` wrote also
carries ``qualified`` (the machine it was measured on) and ``digest``; such a profile holds only where it was measured
and only as it was written. ``auto`` takes the profile that qualify left for this device, where it holds, else the
device policy of ``amd_ops.toggles``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import device
from .folders import readable_folders
from .toggle_rules import PROFILE_SCHEMA as SCHEMA
from .toggle_rules import REDO, ProfileError, as_text, digest, read_profile

__all__ = [
    "LIMITS",
    "SCHEMA",
    "Chosen",
    "ProfileError",
    "as_text",
    "choose",
    "default_path",
    "digest",
    "machine",
    "read",
]

_environment: Callable[[], Mapping[str, str]] = dict

FOLDER_VARIABLE = "AMD_OPS_PROFILES"
LIMITS = ("AMD_OPS_STOCK", "AMD_OPS_OP_TIERS")


@dataclass(frozen=True)
class Chosen:
    """What a policy came to: values for unset toggles, and a note about the profile for the report."""

    toggles: dict[str, str] = field(default_factory=dict)
    note: str = ""
    found: bool = False


def choose(policy: str, by_hand: Collection[str]) -> Chosen:
    """Resolve ``AMD_OPS``. ``by_hand`` are the names of the toggles that are set already.

    Raises ProfileError for a file that cannot be read, was edited, or was measured on another machine. Under ``auto``
    such a file is left aside, and the note says so.
    """
    if policy == "off":
        return Chosen()
    if policy != "auto":
        content = read(Path(policy))
        return Chosen(_values(content, by_hand), f"profile {policy}{_of_ranks(content)}", True)
    path = default_path()
    if not path.is_file():
        return Chosen()
    try:
        content = read(path)
    except ProfileError as error:
        return Chosen(note=f"profile {path} is not used: it is a file {_as_sentence(error)}")
    return Chosen(_values(content, by_hand), f"profile {path}{_of_ranks(content)}", True)


def _of_ranks(content: Mapping[str, Any]) -> str:
    """Return what a reader must know where a profile was qualified with another number of ranks than this run has.

    It is no reason to refuse it: ranks that share no Linear (data parallelism) compute what one process does.
    """
    here, there = _environment().get("WORLD_SIZE", "1"), content.get("ranks")
    if there is None or here == str(there):
        return ""
    return (
        f" (qualified with {there} rank{'s' if there != 1 else ''}, and this process is one of {here}: where a "
        "tensor-parallel plan spreads the Linears, the shapes of their shards were not tried)"
    )


def _as_sentence(error: ProfileError) -> str:
    return str(error).removeprefix("a file ").rstrip(".")


def read(path: Path) -> dict[str, Any]:
    """Return a profile's content, checked: form, names, values, digest and machine. Raises ProfileError."""
    content = read_profile(path)
    measured = content.get("qualified")
    if measured is not None:
        for name, here in machine().items():
            if measured.get(name) != here:
                raise ProfileError(
                    f"a file that was qualified with {name} {measured.get(name)!r}, and this process has {here!r}: "
                    f"{REDO}."
                )
    return content


def machine() -> dict[str, str | None]:
    """Return what a verdict depends on: device, torch, aiter, transformers, and the text of amd_ops itself."""
    found = device.current()
    if found is not None:
        name = f"{found.arch} with {found.cu_count} compute units"
    elif torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = "cpu"
    return {
        "device": name,
        "torch": torch.__version__,
        "hip": torch.version.hip,
        "aiter": _version("amd-aiter", "aiter"),
        "transformers": _version("transformers"),
        "overlay": _version("transformers-rocm-overlay"),
        "amd_ops": _own_text(),
    }


def use_environment(read: Callable[[], Mapping[str, str]]) -> None:
    """Say where the environment is read, when settings are. ``toggles.py`` calls this once."""
    global _environment
    _environment = read


def default_path() -> Path:
    """Return where ``auto`` looks for the profile of this device: $AMD_OPS_PROFILES, else the user's data folder.

    A profile that an earlier version left in its own folder is found where today's folder has none.
    """
    environ = _environment()
    found = device.current()
    name = f"{found.arch}-{found.cu_count}" if found else ("cuda" if torch.cuda.is_available() else "cpu")
    if environ.get(FOLDER_VARIABLE):
        return Path(environ[FOLDER_VARIABLE]) / f"{name}.json"
    homes = readable_folders("data", {"HOME": os.path.expanduser("~"), **environ})
    places = [folder / "profiles" / f"{name}.json" for folder in homes] or [Path(os.devnull) / f"{name}.json"]
    return next((path for path in places if path.is_file()), places[0])


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _own_text() -> str:
    """Hash every source file of this package: another dispatch or another kernel is another subject."""
    folder = Path(__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def _values(content: Mapping[str, Any], by_hand: Collection[str]) -> dict[str, str]:
    """Return the toggles as texts. What the profile holds back is let go where its toggle was set by hand."""
    values = {name: as_text(value) for name, value in content["toggles"].items()}
    families = content.get("families")
    if not isinstance(families, dict):
        return values
    for name, separator in zip(LIMITS, (",", ";"), strict=True):
        kept = [
            part
            for part in values.get(name, "").split(separator)
            if part and not set(families.get(part.partition("=")[0].strip(), ())) & set(by_hand)
        ]
        if kept:
            values[name] = separator.join(kept)
        else:
            values.pop(name, None)
    return values
