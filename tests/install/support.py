"""Small trees with the real modeling files, small bundles of our own, and ways to run the program."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rocm_overlay.install import catalog

ROOT = Path(__file__).resolve().parents[2]
MODELS = catalog.load("4.57").models()
VERSION = "4.57.6"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Done:
    """A finished run of the program."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, object]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> dict[str, object]:
        value = self.json["error"]
        assert isinstance(value, dict)
        return value


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child process: our sources on the path, no environment of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "installer")])
    return {**kept, "PYTHONPATH": path, "NO_COLOR": "1", **(extra or {})}


def run_process(*arguments: str, code: str = "from rocm_overlay.cli import main; main()", **extra: str) -> Done:
    """Run the program, or other ``code``, in a fresh interpreter."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment(extra), capture_output=True, text=True, timeout=120, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def snapshot(site: Path) -> dict[str, object]:
    """Everything about every file that revert promises to bring back; our state folder and bytecode are left out."""
    found: dict[str, object] = {}
    for path in sorted(site.rglob("*")):
        name = path.relative_to(site).as_posix()
        if name.startswith(".amd-overlay") or "__pycache__" in name or (path.is_dir() and not path.is_symlink()):
            continue
        status = path.lstat()
        link = os.readlink(path) if path.is_symlink() else None
        xattrs = {} if link else {key: os.getxattr(path, key) for key in os.listxattr(path)}
        owner = (status.st_uid, status.st_gid)
        found[name] = (digest(path.read_bytes()), status.st_mode, owner, status.st_mtime_ns, link, str(xattrs))
    return found


def modeling(site: Path, model: str = "llama") -> Path:
    return site / "transformers" / "models" / model / f"modeling_{model}.py"


STOCK = {
    "one": b'"""Model one."""\n\nimport os\n\nprint("one")\n',
    "two": b'"""Model two."""\n\nimport os\n\nprint("two")\n',
    "three": b'"""Model three."""\n\nprint("3")\n',
}
LINE = "1.0"


def overlay_text(stock: bytes, generator: int = 1) -> bytes:
    header = f"# amd-overlay/1 base=sha256:{digest(stock)} generator={generator} recipes=0123456789ab (test)\n"
    return header.encode() + stock


def make_bundle(
    folder: Path, stocks: Mapping[str, bytes] = STOCK, *, generator: int = 1, releases: tuple[str, ...] = ("1.0.0",)
) -> Path:
    """Write a bundle for the line 1.0 with one edit per file, the header."""
    files = []
    for model, stock in sorted(stocks.items()):
        data = overlay_text(stock, generator)
        length = len(data) - len(stock)
        name = f"models/{model}/modeling_{model}"
        payload = f"{name}.{digest(stock)[:12]}.py"
        (folder / LINE / payload).parent.mkdir(parents=True, exist_ok=True)
        (folder / LINE / payload).write_bytes(data)
        edit = {"recipe": "marker", "qualname": "", "stock": [0, 0], "overlay": [0, length], "stock_text": ""}
        files.append(
            {
                "model": model,
                "path": f"{name}.py",
                "stock_sha256": digest(stock),
                "stock_size": len(stock),
                "overlay_sha256": digest(data),
                "overlay_size": len(data),
                "payload": payload,
                "diff": payload[:-3] + ".diff",
                "releases": list(releases),
                "edits": [edit],
            }
        )
    manifest = {
        "schema": "amd-overlay.manifest/1", "line": LINE, "generator": generator, "recipes": "0123456789ab",
        "releases": list(releases), "files": files,
    }  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def write_manifest(folder: Path, manifest: object) -> None:
    (folder / LINE / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def make_site(site: Path, stocks: Mapping[str, bytes] = STOCK, *, version: str = "1.0.0", record: bool = True) -> Path:
    """Write an installed transformers that has nothing but these models."""
    package = site / "transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
    lines = []
    for model, stock in stocks.items():
        file = modeling(site, model)
        file.parent.mkdir(parents=True)
        file.write_bytes(stock)
        os.utime(file, ns=(10**18, 10**18 + 123456789))
        encoded = base64.urlsafe_b64encode(hashlib.sha256(stock).digest()).decode().rstrip("=")
        lines.append(f"{file.relative_to(site).as_posix()},sha256={encoded},{len(stock)}\n")
    info = site / f"transformers-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n")
    if record:
        (info / "RECORD").write_text("".join(lines))
    return site


FITTING = b'''"""Model one, edited: its norm takes a condition."""

import torch
from torch import nn


class OneRMSNorm(nn.Module):
    def __init__(self, hidden_size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states):
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


class OneConditioned(nn.Module):
    def forward(self, x, cond=None):
        return x if cond is None else x * cond
'''
"""An edit that the recipes can make an overlay from: one of its classes is a norm that they know."""
