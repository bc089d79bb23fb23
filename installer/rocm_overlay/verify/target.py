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


def read_model_type(folder: Path) -> str:
    """Return the ``model_type`` of a saved model; `UsageError` when the folder does not hold one."""
    config = folder / "config.json"
    remedy = "pass --model a folder that save_pretrained wrote (config.json and the weights)"
    if not config.is_file():
        found = "has no config.json" if folder.is_dir() else "is not a folder"
        raise UsageError("model-not-found", f"{folder} {found}", remedy=remedy, paths=[folder])
    try:
        content = json.loads(config.read_bytes())
    except (ValueError, OSError) as error:
        message = f"{config} cannot be read as JSON: {error}"
        raise UsageError("model-unreadable", message, remedy=remedy, paths=[config]) from None
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(model_type, str):
        raise UsageError("model-unreadable", f"{config} names no model_type", remedy=remedy, paths=[config])
    return model_type


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


def find_sources(interpreter: Interpreter, model_type: str) -> list[Source]:
    """Return both texts of every modeling file of a model type, chosen by the hash of the installed file.

    Raises UnsupportedError when there is no overlay for the type or for the installed text, ForeignError when the
    file was edited, BundleError when a file of this program is damaged.
    """
    every = [entry for line in catalog.lines() for entry in catalog.load(line).files]
    entries = [entry for entry in every if entry.model == model_type]
    if not entries:
        raise UnsupportedError(
            "no-overlay",
            f"there is no overlay for model type {model_type!r}",
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
    if interpreter.transformers in known or text.startswith(b"# amd-overlay/"):
        message = f"{where} is neither the text of that release nor one of this program's overlays"
        remedy = "overlay diff shows the edit; reinstall that transformers release, then run this again"
        return ForeignError("foreign-file", message, remedy=remedy, paths=[installed])
    message = f"{where} has a text that no overlay was made from"
    return UnsupportedError("unknown-text", message, remedy=_releases(entries), paths=[installed])


def _releases(entries: list[catalog.FileEntry]) -> str:
    releases = sorted({release for entry in entries for release in entry.releases})
    return f"install one of the releases with an overlay: {', '.join(releases)}"
