"""What is in the interpreter under test, read without importing torch or transformers in either process."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..install import catalog
from ..install.target import resolve
from ..install.transaction.errors import ForeignError, OverlayError, TargetError, UnsupportedError, UsageError
from ..install.transaction.states import MARKER

_PROBE = """
import importlib.util, json, platform, sys
from importlib import metadata

if sys.path and sys.path[0] == "":
    del sys.path[0]  # the working directory, which `-c` puts first, is no part of the environment

def origin(name):
    spec = importlib.util.find_spec(name)
    return spec.origin if spec is not None else None

def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

print(json.dumps({
    "executable": sys.executable,
    "python": platform.python_version(),
    "transformers": version("transformers"),
    "torch": version("torch"),
    "origins": {name: origin(name) for name in ("torch", "transformers", "amd_ops", "safetensors")},
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """The interpreter under test; ``package`` is its transformers folder, ``amd_ops`` the file it would import."""

    executable: str
    python: str
    torch: str | None
    transformers: str | None
    package: Path
    amd_ops: str | None

    def as_json(self) -> dict[str, Any]:
        """Return plain values for the report."""
        return {
            "executable": self.executable,
            "python": self.python,
            "torch": self.torch,
            "transformers": self.transformers,
            "package": str(self.package),
            "amd_ops": self.amd_ops,
        }


@dataclass(frozen=True)
class Source:
    """Both texts of one modeling file: what stock ships and what the overlay puts in its place."""

    module: str
    path: str  # relative to the transformers package
    stock_sha256: str
    overlay_sha256: str
    installed: str  # "stock" or "overlay": which of both lies there now
    stock: bytes
    overlay: bytes

    def as_json(self) -> dict[str, Any]:
        """Return the identities without the texts."""
        names = ("module", "path", "stock_sha256", "overlay_sha256", "installed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Model:
    """What is verified: a folder of a saved model, or a configuration alone, whose weights are then seeded."""

    path: Path
    types: tuple[str, ...]  # the model type, then those of the parts (text, vision)
    seeded: bool


def read_model(path: Path) -> Model:
    """Read what ``--model`` names. Raises UsageError for what is no model, and for a checkpoint that lacks a shard."""
    seeded = path.is_file()
    config = path if seeded else path / "config.json"
    remedy = "pass --model a folder that save_pretrained wrote (config.json and the weights), or a config.json alone"
    if not config.is_file():
        found = "has no config.json" if path.is_dir() else "is not a folder"
        raise UsageError("model-not-found", f"{path} {found}", remedy=remedy, paths=[path])
    content = _json(config, remedy)
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(model_type, str):
        raise UsageError("model-unreadable", f"{config} names no model_type", remedy=remedy, paths=[config])
    parts = [value.get("model_type") for value in content.values() if isinstance(value, dict)]
    types = dict.fromkeys([model_type, *(part for part in parts if isinstance(part, str))])
    if not seeded:
        _check_shards(path)
    return Model(config if seeded else path, tuple(types), seeded)


def read_model_type(folder: Path) -> str:
    """Return the ``model_type`` of a saved model; `UsageError` when the folder does not hold one."""
    return read_model(folder).types[0]


def _json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        message = f"{path} cannot be read as JSON: {error}"
        raise UsageError("model-unreadable", message, remedy=remedy, paths=[path]) from None


def _check_shards(folder: Path) -> None:
    """Every file that the index of a sharded checkpoint names must be there: loaders say less clearly what is not."""
    for index in sorted(folder.glob("*.index.json")):
        remedy = f"download {folder} again, whole"
        content = _json(index, remedy)
        named = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(named, dict):
            message = f"{index} has no weight_map"
            raise UsageError("model-unreadable", message, remedy=remedy, paths=[index])
        missing = sorted({str(name) for name in named.values()} - {path.name for path in folder.iterdir()})
        if missing:
            message = f"{folder} lacks {len(missing)} of its shards: {', '.join(missing[:3])}"
            raise UsageError("model-incomplete", message, remedy=remedy, paths=[folder / name for name in missing])


def probe(python: str | None) -> Interpreter:
    """Ask an interpreter what it would import; without ``python`` the one that ``overlay install`` would choose.

    Raises TargetError when it cannot be run or lacks torch, transformers or safetensors.
    """
    executable = python or resolve().executable or sys.executable
    remedy = "pass --python the interpreter of the environment that runs the model"
    try:
        done = subprocess.run([executable, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError("no-interpreter", f"{executable} cannot be run: {error}", remedy=remedy) from None
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise TargetError("no-interpreter", f"{executable} is no working Python: {last}", remedy=remedy) from None
    for name in ("torch", "transformers", "safetensors"):
        if found["origins"][name] is None:
            message = f"{found['executable']} (Python {found['python']}) has no {name}"
            raise TargetError(f"no-{name}", message, remedy=f"install {name} there, or {remedy}")
    return Interpreter(
        executable=found["executable"],
        python=found["python"],
        torch=found["torch"],
        transformers=found["transformers"],
        package=Path(found["origins"]["transformers"]).parent,
        amd_ops=found["origins"]["amd_ops"],
    )


def find_sources(interpreter: Interpreter, *model_types: str) -> list[Source]:
    """Return both texts of every modeling file of the model types, chosen by the hash of the installed file.

    Raises UnsupportedError when there is no overlay for any of the types or for the installed text, ForeignError when
    the file was edited, BundleError when a file of this program is damaged.
    """
    every = [entry for line in catalog.lines() for entry in catalog.load(line).files]
    entries = [entry for entry in every if entry.model in model_types]
    if not entries:
        raise UnsupportedError(
            "no-overlay",
            f"there is no overlay for model type {model_types[0]!r}",
            remedy=f"models with an overlay: {', '.join(sorted({entry.model for entry in every}))}",
        )
    return [_source(interpreter, path, entries) for path in sorted({entry.path for entry in entries})]


def _source(interpreter: Interpreter, path: str, entries: list[catalog.FileEntry]) -> Source:
    installed = interpreter.package / path
    try:
        text = installed.read_bytes()
    except OSError as error:
        message = f"transformers {interpreter.transformers} has no readable {path}: {error}"
        raise UnsupportedError("no-file", message, remedy=_releases(entries), paths=[installed]) from None
    digest = hashlib.sha256(text).hexdigest()
    for entry in entries:
        if entry.path == path and digest in (entry.stock_sha256, entry.overlay_sha256):
            break
    else:
        raise _unknown_text(interpreter, installed, text, digest, entries)
    return Source(
        module="transformers." + path.removesuffix(".py").replace("/", "."),
        path=path,
        stock_sha256=entry.stock_sha256,
        overlay_sha256=entry.overlay_sha256,
        installed="stock" if digest == entry.stock_sha256 else "overlay",
        stock=entry.stock_bytes(),
        overlay=entry.overlay_bytes(),
    )


def _unknown_text(
    interpreter: Interpreter, installed: Path, text: bytes, digest: str, entries: list[catalog.FileEntry]
) -> OverlayError:
    where = f"{installed} (transformers {interpreter.transformers}, sha256 {digest[:12]})"
    known = {release for entry in entries for release in entry.releases}
    if interpreter.transformers in known or text.startswith(MARKER):
        message = f"{where} is neither the text of that release nor one of this program's overlays"
        remedy = "overlay diff shows the edit; reinstall that transformers release, then run this again"
        return ForeignError("foreign-file", message, remedy=remedy, paths=[installed])
    message = f"{where} has a text that no overlay was made from"
    return UnsupportedError("unknown-text", message, remedy=_releases(entries), paths=[installed])


def _releases(entries: list[catalog.FileEntry]) -> str:
    releases = sorted({release for entry in entries for release in entry.releases})
    return f"install one of the releases with an overlay: {', '.join(releases)}"
