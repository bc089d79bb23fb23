"""Where tables live: the user's own, the bundled ones, and the private folder of merged files."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from ..errors import WriteError
from ..shared import folders
from .device import Device

TUNED = "bf16_tuned_gemm.csv"
VARIABLE = "AITER_CONFIG_GEMM_BF16"


def bundle() -> Path:
    """Return the bundled ``tuning_csv`` folder, in a wheel and in an editable install alike."""
    return Path(__file__).resolve().parent.parent / "tuning_csv"


def bundled_tables(device: Device) -> tuple[Path, ...]:
    return tuple(sorted((bundle() / device.folder).glob(f"*/{TUNED}")))


def user_tables(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the user's own tables: every .csv in ``$XDG_CONFIG_HOME/amd-overlay/gemm``, or where it was formerly."""
    kept = folders().readable_folders("config", environment)
    return tuple(path for folder in kept for path in sorted((folder / "gemm").glob("*.csv")))


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Return where merged tables are kept. WriteError for a user without a home."""
    folder: Path | None = folders().user_folder("cache", environment)
    if folder is None:
        raise WriteError("no-home", "there is no home folder to keep the merged table in", remedy="set XDG_CACHE_HOME")
    return folder / "gemm"


def private_folder(path: Path) -> Path:
    """Make a folder only its owner can use; refuse one that somebody else owns or can write to."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.lstat()
    except OSError as error:
        message = f"cannot make {path}: {error.strerror or error}"
        raise WriteError("cannot-write", message, remedy="set XDG_CACHE_HOME to a folder you own") from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        message = f"{path} is not a private folder of this user"
        raise WriteError("not-private", message, remedy=f"chmod 700 {path}, or set XDG_CACHE_HOME")
    return path


def only_mine(path: Path) -> bool:
    """True for a finished file that nobody but this user can have written."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o022
