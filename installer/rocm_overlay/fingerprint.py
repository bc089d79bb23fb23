"""What a result depends on, by content: results with one fingerprint may stand for each other, others never.

Every command that goes on where it was stopped (bench, verify, qualify, tune run, synth parallel) keys what it keeps by
a `Fingerprint`. A path is no ingredient: another model under the same path is another subject, the same model under
another path is the same one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import __version__
from .console import notes
from .errors import TargetError
from .files import write_atomic
from .install.gpu import gpus
from .shared import folders, rules

# The environment that can change an answer or a time. Names with these beginnings count, but for those that only name
# a place among ranks, which a launcher makes up for every run.
PREFIXES = (
    "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "BLIS_", "DNNL_", "ONEDNN_", "MALLOC_",
    "HIP", "HSA_", "ROCR_", "ROCM_", "ROC", "AMD", "GPU_", "MIOPEN_", "TENSILE_", "RCCL_",
    "USE_", "FORCE_", "PRESHUFFLE_", "AITER_", "CK_", "ENABLE_CK", "FLASH_", "TRITON_", "LIGER_", "KERNELS_",
    "DISABLE_ADDMM_", "ACCELERATE_",
    "TORCH", "PYTORCH_", "ATEN_", "TRANSFORMERS_", "SAFETENSORS_", "CUDA_", "CUBLAS", "CUDNN_", "NVIDIA_", "NCCL_",
)  # fmt: skip
NAMES = ("LRU_CACHE_CAPACITY", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONOPTIMIZE")
_MADE_UP = ("TORCHELASTIC_",)

# Distributions whose code runs in a measurement, and the package of each.
_PACKAGES = {
    "torch": "torch", "transformers": "transformers", "amd-aiter": "aiter", "aiter": "aiter", "triton": "triton",
    "pytorch-triton-rocm": "triton", "numpy": "numpy", "safetensors": "safetensors", "tokenizers": "tokenizers",
    "accelerate": "accelerate", "liger-kernel": "liger_kernel", "kernels": "kernels", "flash-attn": "flash_attn",
}  # fmt: skip
_MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.py")
# Of transformers: what every model may run, beside its own family's folder.
_LIBRARY = ("*.py", "generation/*.py", "integrations/*.py", "loss/*.py", "quantizers/*.py", "utils/*.py")
_LARGE = 2 << 30
_FRESH_SECONDS = 2.0
_KEPT_HASHES = 4096
_CHUNK = 1 << 22

# Runs in the interpreter under test. A wheel's RECORD holds the hash of every file; a package that is installed as a
# link has none there, so that sizes and times of its files stand for it. Tables of GEMMs are read as they lie there:
# who tunes puts other ones in their place.
_BUILDS = """
import hashlib, json, os, platform, sys
from importlib import metadata, util
if sys.path and sys.path[0] == "":
    del sys.path[0]
tabled = ("aiter",)
found = {"python": platform.python_version(), "executable": sys.executable}
for name, package in json.loads(sys.argv[1]).items():
    try:
        held = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue
    record = held.read_text("RECORD") or ""
    total = hashlib.sha256(record.encode())
    linked = f"\\n{package}/" not in "\\n" + record
    if linked or package in tabled:
        spec = util.find_spec(package)
        folders = list((spec.submodule_search_locations or ()) if spec else ())
        for folder in folders if package in tabled else ():
            for place, inner, files in os.walk(os.path.join(folder, "configs")):
                inner.sort()
                for one in sorted(file for file in files if file.endswith((".csv", ".json"))):
                    with open(os.path.join(place, one), "rb") as stream:
                        total.update(one.encode() + hashlib.sha256(stream.read()).digest())
        for folder in folders if linked else ():
            for place, inner, files in os.walk(folder):
                inner.sort()
                for one in sorted(file for file in files if file.endswith((".py", ".so"))):
                    known = os.stat(os.path.join(place, one))
                    total.update(f"{place}/{one} {known.st_size} {known.st_mtime_ns}\\n".encode())
    found[name] = f"{held.version} {total.hexdigest()[:16]}"
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Fingerprint:
    """The ingredients of a result by name: plan, model, software, overlay, environment, machine. Plain JSON values."""

    ingredients: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Return the sha256 of all ingredients."""
        return hashlib.sha256(json.dumps(self.ingredients, sort_keys=True).encode()).hexdigest()

    def planned(self, plan: Mapping[str, Any]) -> Fingerprint:
        """Return this fingerprint with the settings of a command, what it was asked to do."""
        return replace(self, ingredients={**self.ingredients, "plan": json.loads(json.dumps(plan))})


def surroundings(
    *,
    python: str = sys.executable,
    environ: Mapping[str, str] = os.environ,
    model: Path | None = None,
    library: Path | None = None,
    texts: Mapping[str, tuple[str, str]] | None = None,
    amd_ops: str | None = None,
    root: Path = Path("/"),
) -> Fingerprint:
    """Take the fingerprint of everything but a command's own settings (`Fingerprint.planned` adds them).

    Args:
        python: the interpreter that runs the work.
        environ: the environment that the work gets.
        model: a model's folder, or its config.json alone.
        library: the folder of transformers in that interpreter.
        texts: by the path of a modeling file below ``library``, the sha256 of its stock and of its overlaid text.
        amd_ops: the ``__init__.py`` of the amd_ops that the interpreter imports; None for the one beside this program.
        root: where the files are that tell of drivers and devices.

    Raises:
        TargetError: the interpreter cannot be run.
    """
    texts = texts or {}
    return Fingerprint(
        {
            "model": {} if model is None else model_files(model),
            "software": {**builds(python), **({} if library is None else {"library": _library(library, texts)})},
            "overlay": {
                "version": __version__,
                "program": _program(),
                "amd_ops": _folder(Path(amd_ops or rules().__file__).parent, ("**/*.py",)),
                "texts": {path: list(pair) for path, pair in sorted(texts.items())},
            },
            "environment": environment(environ),
            "machine": machine(root),
        }
    )


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that can change an answer; where one names files (a table of aiter's), their hashes, too.

    No process of a measurement inherits a toggle of ours, so that a profile which one of them names is not read.
    """
    found = {}
    for name in sorted(environ):
        if name in NAMES or (name.startswith(PREFIXES) and not name.startswith(_MADE_UP)):
            files = () if rules().is_toggle(name) else environ[name].split(os.pathsep)
            hashes = [sha256(Path(file)) for file in files if os.path.isfile(file)]
            found[name] = " ".join([environ[name], *(f"sha256:{one}" for one in hashes)])
    return found


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """Return drivers, GPUs and processor of this machine, from files below ``root``: no torch, no ROCm tools."""
    drivers = {
        "amdgpu": "sys/module/amdgpu/version", "amdgpu source": "sys/module/amdgpu/srcversion",
        "rocm": "opt/rocm/.info/version", "nvidia": "proc/driver/nvidia/version",
    }  # fmt: skip
    nvidia = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    return {
        "kernel": f"{platform.release()} {platform.machine()}",
        "driver": {name: _text(root / path) for name, path in drivers.items() if (root / path).is_file()},
        "device": [
            *(f"{one.arch}:{one.compute_units}" for one in gpus(root / "sys/class/kfd/kfd/topology/nodes")),
            *(_line(path, "Model") for path in nvidia),
        ],
        "cpu": _line(root / "proc/cpuinfo", "model name"),
        "cpus": len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)),
        "cpu share": _text(root / "sys/fs/cgroup/cpu.max"),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _line(path: Path, name: str) -> str:
    lines = (line.partition(":") for line in _text(path).splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


@lru_cache(maxsize=8)
def _builds(python: str, search_path: str | None) -> str:
    """Ask an interpreter once for each PYTHONPATH (``search_path``): it decides which packages are found."""
    command = [python, "-c", _BUILDS, json.dumps(_PACKAGES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        remedy = "pass --python the interpreter of the environment that runs the model"
        raise TargetError("no-interpreter", f"{python} cannot be run: {error}", remedy=remedy) from None
    return done.stdout.splitlines()[-1]


def builds(python: str) -> dict[str, str]:
    """Return version and identity of every package of an interpreter that takes part. Raises TargetError."""
    found: dict[str, str] = json.loads(_builds(python, os.environ.get("PYTHONPATH")))
    return found


def model_files(model: Path) -> dict[str, str]:
    """Return the sha256 of a model's configuration, weights and code, by file name; of a config.json alone its own."""
    if model.is_file():
        return {model.name: sha256(model)}
    files = sorted({path for pattern in _MODEL_FILES for path in model.glob(pattern) if path.is_file()})
    unknown = sum(path.stat().st_size for path in files if _known(path) is None)
    if unknown > _LARGE:
        notes([f"hashing {unknown / 2**30:.0f} GiB of {model.name}, once: results are kept by content"])
    return {path.name: sha256(path) for path in files}


def _library(package: Path, texts: Iterable[str]) -> str:
    """Hash what a model runs of transformers; its modeling files are known by both their texts, whichever is there."""
    families = sorted({f"{Path(path).parent.as_posix()}/*.py" for path in texts})
    return _folder(package, (*_LIBRARY, *families), frozenset(texts))


@lru_cache(maxsize=1)
def _program() -> str:
    """Hash this program but for the overlays: another case or another rule is another result."""
    folder = Path(__file__).parent
    rooms = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    return _folder(folder, ("*.py", *(f"{room}/**/*.py" for room in rooms)))


def _folder(folder: Path, patterns: Iterable[str], without: frozenset[str] = frozenset()) -> str:
    """Hash the names and texts of the files of a folder."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        name = path.relative_to(folder).as_posix()
        if name not in without:
            total.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


# -- hashes of large files


def sha256(path: Path) -> str:
    """Return the sha256 of a file; it is read once, as long as device, inode, size and times stay what they were."""
    known = _known(path)
    if known is not None:
        return known
    total = hashlib.sha256()
    before = path.stat()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            total.update(block)
    digest = total.hexdigest()
    # A file that was written a moment ago may be written again within one tick of its clock.
    if time.time() - max(before.st_mtime, before.st_ctime) > _FRESH_SECONDS and _key(path) == _key_of(before):
        _remember(_key_of(before), digest)
    return digest


def _key_of(found: os.stat_result) -> str:
    parts = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return ":".join(map(str, parts))


def _key(path: Path) -> str:
    return _key_of(path.stat())


def _store() -> Path | None:
    folder: Path | None = folders().user_folder("cache", os.environ)
    return folder / "hashes.json" if folder else None


def _hashes() -> dict[str, str]:
    store = _store()
    try:
        found = json.loads(store.read_bytes()) if store else {}
    except (OSError, ValueError):
        return {}  # it only saves time
    return dict(found) if isinstance(found, dict) else {}


def _known(path: Path) -> str | None:
    return _hashes().get(_key(path))


def _remember(key: str, digest: str) -> None:
    store = _store()
    if store is None:
        return
    kept = [*_hashes().items(), (key, digest)][-_KEPT_HASHES:]
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(store, json.dumps(dict(kept)).encode())
    except OSError:
        return  # the next run reads the file again
