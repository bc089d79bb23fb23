"""A profile that `overlay qualify` wrote where every tier is right launches what plain toggles launch."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.verify.qualify import command

from examples.tiny_models import save_tiny

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOGGLES = {name.lower(): 1 for name in
           ("USE_FUSED_PROJECTIONS", "USE_OPTIMIZED_OPS", "USE_AITER_ATTENTION", "USE_AITER_GEMM")}  # fmt: skip
LAUNCHES = {"llama": 9, "qwen3": 9}
"""Of a decoder layer in a decode step, with either cache."""


def per_layer(model: str, settings: dict[str, Any]) -> dict[str, float]:
    """Return the launches of a layer by phase under settings, as the published table counts them."""
    code = f"import json, runpy; print(json.dumps(runpy.run_path({__file__!r})['counted']({model!r}, {settings!r})))"
    run = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(run, cwd=ROOT, env=posing(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def counted(model: str, settings: dict[str, Any]) -> dict[str, float]:
    """Count in this process, which has no modeling file imported yet."""
    import tempfile

    sys.path.insert(0, str(ROOT / "benchmarks"))
    bench = runpy.run_path(str(ROOT / "benchmarks" / "bench_launches.py"))
    with tempfile.TemporaryDirectory() as folder, bench["_gpu"]():
        import amd_ops

        bench["_serve_overlay"](model, Path(folder))
        with amd_ops.override(**settings):
            few, many = bench["_kernels"](model, 1), bench["_kernels"](model, 3)
    return {phase: (names.total() - few[phase].total()) / 2 for phase, names in many.items()}


def posing(**more: str) -> dict[str, str]:
    """The environment of a process in which our Triton kernels are interpreted."""
    return {**os.environ, "TRITON_INTERPRET": "1", **more}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["llama", pytest.param("qwen3", marks=pytest.mark.full)])
def test_a_profile_launches_what_plain_toggles_launch(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_tiny(model, tmp_path / model)
    path = os.pathsep.join((str(HERE / "doubles"), str(ROOT), os.environ.get("PYTHONPATH", "")))
    for name, value in {"OVERLAY_TEST_DOUBLES": "gpu", "TRITON_INTERPRET": "1", "PYTHONPATH": path}.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    options = command.Options(
        saved, tmp_path / "profile.json", python=sys.executable, dtype="bfloat16", time_limit=300.0, build_limit=300.0
    )
    content = command.qualify(options, said.append)
    monkeypatch.delenv("OVERLAY_TEST_DOUBLES")
    assert content["complete"], said
    profile, plain = per_layer(model, {"profile": str(options.output)}), per_layer(model, TOGGLES)
    for phase in ("decode", "static decode"):
        assert profile[phase] == plain[phase] == LAUNCHES[model], (phase, profile, plain, said)
