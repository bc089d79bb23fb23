"""`overlay info`: what a report of a problem needs to say about a machine, without importing torch or asking a GPU."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import OverlayError
from ..shared import rules
from . import inspection
from .gpu import NODES, gpus
from .session import Options

DRIVER = Path("/sys/module/amdgpu/version")
ROCM = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "HIP_FORCE_DEV_KERNARG", "GPU_ARCHS")
# Runs in the interpreter that is asked, and imports nothing of what it names. The last line is its answer.
_SCRIPT = """
import importlib.metadata as m, importlib.util as u, json, os, platform, re, sys
def version(*names):
    for name in names:
        try: return m.version(name)
        except m.PackageNotFoundError: pass
spec, hip = u.find_spec("torch"), None
if spec is not None and spec.origin:
    file = os.path.join(os.path.dirname(spec.origin), "version.py")
    text = open(file, encoding="utf-8").read() if os.path.exists(file) else ""
    found = re.search(r"^hip[^=\\n]*= *['\\"]([^'\\"]+)", text, re.M)
    hip = found and found.group(1)
print("\\n" + json.dumps({
    "python": {"version": platform.python_version(), "executable": sys.executable},
    "torch": {"version": version("torch"), "hip": hip},
    "aiter": {"version": version("amd-aiter", "aiter")},
    "triton": {"version": version("triton", "triton-rocm", "pytorch-triton-rocm")},
    "transformers": {"version": version("transformers")}}))
"""


@dataclass(frozen=True)
class Info:
    """What `overlay info --json` prints, below its envelope."""

    body: dict[str, Any]


def collect(options: Options, environ: Mapping[str, str] = os.environ) -> Info:
    """Return versions, GPUs, toggles and the overlay's state; what cannot be found out is None, with the reason."""
    try:
        status = inspection.status(options)
    except OverlayError as error:
        overlay: dict[str, Any] = {"version": __version__, "state": None, "why": error.message}
        executable = options.python or sys.executable
    else:
        overlay = {"version": __version__, "state": status.state.value, "mode": status.mode}
        executable = status.target.executable or sys.executable
    toggles = {name: value for name, value in sorted(environ.items()) if rules().is_toggle(name) or name in ROCM}
    return Info(
        {
            **_ask(executable),
            "overlay": overlay,
            "gpus": [f"{gpu.arch}:{gpu.compute_units}" for gpu in gpus(NODES)],
            "driver": DRIVER.read_text().strip() if DRIVER.is_file() else None,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "toggles": toggles,
        }
    )


def _ask(executable: str) -> dict[str, Any]:
    nothing = {name: {"version": None} for name in ("torch", "aiter", "triton", "transformers")}
    try:
        done = subprocess.run([executable, "-c", _SCRIPT], capture_output=True, timeout=60, check=True)
        return {**nothing, **json.loads(done.stdout.splitlines()[-1])}
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return {**nothing, "python": {"version": None, "executable": executable, "why": f"{type(error).__name__}"}}
