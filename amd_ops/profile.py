"""What ``AMD_OPS`` names: ``off``, ``auto``, or a profile file that decides for the toggles that are unset.

A profile is ``{"schema": "amd-ops.profile/1", "toggles": {NAME: value, ...}}``. One that ``overlay qualify`` wrote also
carries ``qualified`` (the machine it was measured on) and ``digest``; such a profile holds only where it was measured
and only as it was written. ``auto`` takes the profile that qualify left for this device, where it holds, else the
device policy of :mod:`amd_ops.toggles`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import device

_environment: Callable[[], Mapping[str, str]] = dict

SCHEMA = "amd-ops.profile/1"
FOLDER_VARIABLE = "AMD_OPS_PROFILES"
LIMITS = ("AMD_OPS_STOCK", "AMD_OPS_OP_TIERS")
_FIX = "set AMD_OPS to off, auto or the path of a profile file"
_REDO = "run `overlay qualify` on this machine, or set AMD_OPS to auto or off"


class ProfileError(ValueError):
    """A profile cannot be used. The text says why and what to do; it reads on after "AMD_OPS is <path>, "."""


@dataclass(frozen=True)
class Chosen:
    """What a policy came to: values for unset toggles, and a note about the profile for the report."""

    toggles: dict[str, str] = field(default_factory=dict)
    note: str = ""
    found: bool = False


def choose(policy: str, accepted: Collection[str], by_hand: Collection[str]) -> Chosen:
    """Resolve ``AMD_OPS``. ``accepted`` are the names a profile may set, ``by_hand`` those that are set already.

    Raises ProfileError for a file that cannot be read, was edited, or was measured on another machine. Under ``auto``
    such a file is left aside, and the note says so.
    """
    if policy == "off":
        return Chosen()
    if policy != "auto":
        content = read(Path(policy), accepted)
        return Chosen(_values(content, by_hand), f"profile {policy}", True)
    path = default_path()
    if not path.is_file():
        return Chosen()
    try:
        content = read(path, accepted)
    except ProfileError as error:
        return Chosen(note=f"profile {path} is not used: it is a file {_as_sentence(error)}")
    return Chosen(_values(content, by_hand), f"profile {path}", True)


def _as_sentence(error: ProfileError) -> str:
    return str(error).removeprefix("a file ").rstrip(".")


def read(path: Path, accepted: Collection[str]) -> dict[str, Any]:
    """Return a profile's content, checked: names, digest and machine. Raises ProfileError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileError(f"which is neither off, auto nor a readable profile ({error}): {_FIX}.") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("toggles"), dict):
        raise ProfileError(f'a file that is not a {SCHEMA!r} object with "toggles": {_FIX}.')
    unknown = [name for name in content["toggles"] if name not in accepted]
    if unknown:
        names = ", ".join(accepted)
        raise ProfileError(f"which sets {unknown[0]!r}; accepted are {names}: correct the profile.")
    if "qualified" in content or "digest" in content:
        _check_qualified(content)
    return content


def _check_qualified(content: dict[str, Any]) -> None:
    if content.get("digest") != digest(content):
        raise ProfileError(
            f"a file that was changed after `overlay qualify` wrote it: {_REDO}. A profile of your own has only "
            '"schema" and "toggles".'
        )
    measured = content.get("qualified")
    if not isinstance(measured, dict):
        raise ProfileError(f'a file whose "qualified" is not an object: {_REDO}.')
    for name, here in machine().items():
        if measured.get(name) != here:
            raise ProfileError(
                f"a file that was qualified with {name} {measured.get(name)!r}, and this process has {here!r}: {_REDO}."
            )


def digest(content: Mapping[str, Any]) -> str:
    """Return the sha256 of a profile without its digest: a change by hand shows."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


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
    """Return where ``auto`` looks for the profile of this device: $AMD_OPS_PROFILES, else the user's data folder."""
    environ = _environment()
    folder = environ.get(FOLDER_VARIABLE)
    if not folder:
        data = environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
        folder = os.path.join(data, "amd-ops", "profiles")
    found = device.current()
    name = f"{found.arch}-{found.cu_count}" if found else ("cuda" if torch.cuda.is_available() else "cpu")
    return Path(folder) / f"{name}.json"


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


def as_text(value: object) -> str:
    """Return a toggle's value as the environment would have it."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (tuple, list)):
        return ",".join(str(item) for item in value)
    return str(value)
