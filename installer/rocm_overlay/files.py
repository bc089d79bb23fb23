"""Files of the user's: writing one whole or not at all, finding a model that a download left on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from .errors import WriteError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PART = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.part")
"""The name of the file that `write_atomic` renames."""


def write_atomic(target: Path, data: bytes, mode: int | None = None) -> None:
    """Write beside the target, sync, rename: a reader sees the old file or the new one, never a part.

    ``mode`` None leaves the mode to the umask. Raises OSError; the target is then as it was and nothing is beside it.
    """
    part = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            if mode is not None:
                os.fchmod(stream.fileno(), mode)  # whatever the umask
            os.fsync(stream.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_place(path: Path, option: str) -> None:
    """Refuse a file that ``option`` names and that cannot be written, before anything is run for it.

    Raises WriteError.
    """
    problem = "is a folder" if path.is_dir() else "" if path.parent.is_dir() else f"is in no folder: {path.parent}"
    if problem:
        remedy = f"name a file in a folder that is there with {option}"
        raise WriteError("no-output", f"{path} {problem}", remedy=remedy, paths=[path])


def remove_parts(folder: Path, names: Collection[str]) -> None:
    """Remove what `write_atomic` left beside these files of a folder where it was killed.

    For a caller that alone writes them: another's write that is under way would fail. Raises OSError.
    """
    for path in folder.glob(".*.part"):
        part = PART.fullmatch(path.name)
        if part and part["name"] in names:
            path.unlink(missing_ok=True)


def model_path(name: str | Path) -> Path:
    """Return the folder or file that a user means by a model: a path, or a hub id such as ``Qwen/Qwen3-0.6B``.

    An id is looked up in the local cache of Hugging Face, where `hf download` and `from_pretrained` put models; nothing
    is fetched. What is neither is returned as the path that it is not, for the caller to refuse.
    """
    path = Path(name)
    if path.exists() or HUB_ID.fullmatch(str(name)) is None:
        return path
    home = Path(
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    cached = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{str(name).replace('/', '--')}"
    try:
        snapshot = cached / "snapshots" / (cached / "refs" / "main").read_text().strip()
    except OSError:
        return path
    return snapshot if (snapshot / "config.json").is_file() else path


def model_remedy(name: str | Path, otherwise: str) -> str:
    """What to do about a model that is not there: download it where its name is that of the hub."""
    if HUB_ID.fullmatch(str(name)):
        return f"run `hf download {name}` first, or pass a folder"
    return otherwise
