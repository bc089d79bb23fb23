"""Where tables live: the user's own, the bundled ones, and the private folder of merged files."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from .device import Device
from .errors import EXIT_CANNOT_WRITE, TuneError

NAME = "transformers-rocm-overlay"
TUNED = "bf16_tuned_gemm.csv"
VARIABLE = "AITER_CONFIG_GEMM_BF16"


def bundle() -> Path:
    """Return the bundled ``tuning_csv`` folder, in a wheel and in an editable install alike."""
    return Path(__file__).resolve().parent.parent / "tuning_csv"


def bundled_tables(device: Device) -> tuple[Path, ...]:
    return tuple(sorted((bundle() / device.folder).glob(f"*/{TUNED}")))


def user_tables(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the user's own tables: every .csv in ``$XDG_CONFIG_HOME/transformers-rocm-overlay/gemm``."""
    return tuple(sorted(_base(environment, "XDG_CONFIG_HOME", ".config").glob("*.csv")))


def cache_folder(environment: Mapping[str, str]) -> Path:
    return _base(environment, "XDG_CACHE_HOME", ".cache")


def _base(environment: Mapping[str, str], variable: str, default: str) -> Path:
    stated = environment.get(variable, "")
    # The XDG rules: a relative path is to be ignored.
    root = Path(stated) if os.path.isabs(stated) else Path(environment.get("HOME") or "~").expanduser() / default
    return root / NAME / "gemm"


def private_folder(path: Path) -> Path:
    """Make a folder only its owner can use; refuse one that somebody else owns or can write to."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        message = f"cannot make {path}: {error.strerror or error}"
        raise TuneError("cannot-write", message, "set XDG_CACHE_HOME to a folder you own", EXIT_CANNOT_WRITE) from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        message = f"{path} is not a private folder of this user"
        raise TuneError("not-private", message, f"chmod 700 {path}, or set XDG_CACHE_HOME", EXIT_CANNOT_WRITE)
    return path
