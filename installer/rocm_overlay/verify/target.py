"""What is in the interpreter under test, read without importing torch or transformers in either process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import fingerprint
from ..errors import TargetError, UsageError
from ..files import model_path, model_remedy
from ..fingerprint import Fingerprint
from ..install import catalog, lookup
from ..install.target import resolve

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
    """Both texts of one modeling file: the one that the overlay was made from (stock, or the user's edit of it), and
    the overlay that stands in its place.
    """

    module: str
    path: str  # relative to the transformers package
    stock_sha256: str
    overlay_sha256: str
    installed: str  # "stock" or "overlay": which of both lies there now
    stock: bytes
    overlay: bytes
    origin: str = "bundle"  # where the overlay comes from: bundle, generated, adopted, own

    def as_json(self) -> dict[str, Any]:
        """Return the identities without the texts."""
        names = ("module", "path", "stock_sha256", "overlay_sha256", "installed", "origin")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Model:
    """What is verified: a folder of a saved model, or a configuration alone, whose weights are then seeded."""

    path: Path
    types: tuple[str, ...]  # the model type, then those of the parts (text, vision), at any depth
    seeded: bool
    classes: tuple[str, ...] = ()  # the architectures that config.json names

    @property
    def names(self) -> tuple[str, ...]:
        """What `find_sources` looks for."""
        return (*self.types, *self.classes)


def read_model(path: Path) -> Model:
    """Read what ``--model`` names. Raises UsageError for what is no model, and for a checkpoint that lacks a shard."""
    path = model_path(path)
    seeded = path.is_file()
    config = path if seeded else path / "config.json"
    remedy = "pass --model a folder that save_pretrained wrote (config.json and the weights), or a config.json alone"
    if not config.is_file():
        found = "has no config.json" if path.is_dir() else "is neither a folder nor in the local Hugging Face cache"
        raise UsageError("model-not-found", f"{path} {found}", remedy=model_remedy(path, remedy), paths=[path])
    content = _json(config, remedy)
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(model_type, str):
        raise UsageError("model-unreadable", f"{config} names no model_type", remedy=remedy, paths=[config])
    classes = content.get("architectures")
    named = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    if not seeded:
        _check_shards(path)
    return Model(config if seeded else path, tuple(dict.fromkeys(_types(content))), seeded, tuple(named))


def _types(content: dict[str, Any]) -> Iterator[str]:
    """Yield the model type of a configuration and of every part of it, as deep as they lie."""
    if isinstance(content.get("model_type"), str):
        yield content["model_type"]
    for value in content.values():
        if isinstance(value, dict):
            yield from _types(value)


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


def find_sources(interpreter: Interpreter, *names: str) -> list[Source]:
    """Return both texts of every modeling file that holds these classes or belongs to these model types, whatever the
    origin of its overlay: the receipt of the installation knows it, or the bundle.

    Raises UnsupportedError when there is no overlay for any of the names or for the installed text, ForeignError when
    the file was edited, BundleError when a file of this program is damaged.
    """
    environment = lookup.environment_of(interpreter.package, catalog.BUNDLE)
    return [
        Source(
            module="transformers." + one.path.removesuffix(".py").replace("/", "."),
            path=one.path,
            stock_sha256=one.base_sha256,
            overlay_sha256=one.overlay_sha256,
            installed=one.installed,
            stock=one.base,
            overlay=one.overlay,
            origin=one.origin,
        )
        for one in lookup.pairs(environment, names)
    ]


def fingerprint_of(interpreter: Interpreter, model: Path, sources: list[Source]) -> Fingerprint:
    """Return everything that a result depends on but what a command was asked: `Fingerprint.planned` adds that.

    ``installed`` is no part of it: stock and overlay are both served, whichever lies there now.
    """
    return fingerprint.surroundings(
        python=interpreter.executable,
        model=model,
        library=interpreter.package,
        texts={source.path: (source.stock_sha256, source.overlay_sha256) for source in sources},
        amd_ops=interpreter.amd_ops,
    )
