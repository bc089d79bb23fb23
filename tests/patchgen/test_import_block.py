"""The import block of every overlay: without amd_ops stock runs, and a toggle that asks for more is answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libcst")

from rocm_overlay.overlays.recipes import rms_norm
from rocm_overlay.patchgen.engine import generate
from rocm_overlay.shared import rules

from tests.patchgen.support import one, source
from tests.patchgen.test_recipe_rms_norm import LLAMA

_PROGRAM = """
import pathlib, sys, types
for name in ("torch", "torch.nn"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torch"].nn = sys.modules["torch.nn"]
found = {"__name__": "transformers.models.llama.modeling_llama"}
exec(pathlib.Path(sys.argv[1]).read_bytes(), found)
print(found["_amd"], found["__amd_overlay__"][:7])
"""


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """The beginning of an overlay up to the end of the import block."""
    text = generate(source(LLAMA), "models/llama/modeling_llama.py", one(rms_norm.RECIPE)).overlay
    path = tmp_path / "overlay.py"
    path.write_bytes(text[: text.index(b"\n", text.index(b"__amd_overlay__")) + 1])
    return path


def run(block: Path, folder: Path | None = None, **toggles: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AMD_OPS", "USE_", "PYTHON"))}
    path = {} if folder is None else {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-S", "-c", _PROGRAM, str(block)]  # -S: no site-packages, so no amd_ops
    environ = {**kept, **path, **toggles}
    return subprocess.run(command, env=environ, cwd=block.parent, capture_output=True, text=True, check=False)


def test_without_amd_ops_and_without_a_toggle_stock_runs_in_silence(block: Path) -> None:
    for toggles in ({}, {"AMD_OPS": "off", "USE_AITER_GEMM": "0", "AMD_OPS_STRICT": "1"}):
        done = run(block, **toggles)
        assert (done.returncode, done.stdout, done.stderr) == (0, "None sha256:\n", "")


@pytest.mark.parametrize(
    "toggle", [*(f"{name}=1" for name in rules().REQUESTS), "AMD_OPS=auto", "USE_OPTIMIZED_OPS=auto"]
)
def test_a_toggle_that_cannot_be_honoured_is_a_warning_and_in_strict_mode_an_error(block: Path, toggle: str) -> None:
    name, _, value = toggle.partition("=")
    done = run(block, **{name: value})
    assert (done.returncode, done.stdout) == (0, "None sha256:\n")
    assert done.stderr.count("RuntimeWarning: amd_ops cannot be imported: stock code runs in spite of") == 1
    assert f"in spite of {toggle}" in done.stderr
    strict = run(block, **{name: value, "AMD_OPS_STRICT": "1"})
    assert (strict.returncode, "ImportError: transformers.models.llama" in strict.stderr) == (1, True), strict.stderr


def test_what_an_uninstall_left_behind_counts_as_missing(block: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "amd_ops" / "backends").mkdir(parents=True)
    done = run(block, tmp_path / "site", AMD_OPS="auto")
    assert (done.stdout, "in spite of AMD_OPS=auto" in done.stderr) == ("None sha256:\n", True)


def test_an_amd_ops_that_is_broken_inside_is_an_error_as_always(block: Path, tmp_path: Path) -> None:
    (tmp_path / "site" / "amd_ops").mkdir(parents=True)
    (tmp_path / "site" / "amd_ops" / "__init__.py").write_text("import no_such_module\n")
    done = run(block, tmp_path / "site")
    assert (done.returncode, "No module named 'no_such_module'" in done.stderr) == (1, True)
