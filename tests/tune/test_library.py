"""The bundled folder is what its generator writes, for at least twenty models and every device, within 3 MB."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rocm_overlay.tune.library import DEVICES, META, UNTUNED, configs, differences, main, shapes_of
from rocm_overlay.tune.models import read_model
from rocm_overlay.tune.places import TUNED, bundle
from rocm_overlay.tune.shapes import read_untuned

from .support import child_environment


def test_the_folder_is_as_generated() -> None:
    command = [sys.executable, "-m", "rocm_overlay.tune.library", "--check"]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_every_device_has_every_model() -> None:
    names = {path.stem for path in configs(bundle())}
    assert len(names) >= 20
    for device in DEVICES:
        folder = bundle() / device.folder
        assert {path.name for path in folder.iterdir()} == names
        for name in names:
            meta = json.loads((folder / name / META).read_text())
            shapes, findings = read_untuned(folder / name / UNTUNED)
            assert not findings
            assert (meta["gpu"], meta["rows"], meta["measured_with"]) == (str(device), len(shapes), None)
            assert not (folder / name / TUNED).exists(), "nothing was measured, so nothing may say so"
    assert sum(path.stat().st_size for path in bundle().rglob("*") if path.is_file()) < 3_000_000


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.1-70b"])
def test_shapes_fused_and_not_decode_and_prefill(name: str) -> None:
    shapes, _ = shapes_of(bundle() / "configs" / f"{name}.json")
    found = {(shape.n, shape.k) for shape in shapes}
    for fused in (frozenset[str](), frozenset({"qkv", "gate_up"})):
        assert {(x.n, x.k) for x in read_model(bundle() / "configs" / f"{name}.json", fused=fused).linears} <= found
    assert {shape.m for shape in shapes} == {2**i for i in range(14)}
    if name == "llama-3.1-70b":
        assert (1280, 8192) in found, "the fused qkv of one rank of eight"


def test_edits_by_hand_are_found_and_undone(tmp_path: Path) -> None:
    root = tmp_path / "tuning_csv"
    shutil.copytree(bundle(), root)
    assert differences(root) == []
    (root / "gfx942_304" / "gemma-2b" / UNTUNED).write_text("edited")
    (root / "gfx942_80" / "gemma-2b" / META).unlink()
    (root / "gfx950_256" / "old-model").mkdir()
    (root / "gfx950_256" / "old-model" / UNTUNED).write_text("left")
    assert differences(root) == [
        "differs: gfx942_304/gemma-2b/bf16_untuned_gemm.csv",
        "missing: gfx942_80/gemma-2b/meta.json",
        "left over: gfx950_256/old-model/bf16_untuned_gemm.csv",
    ]
    assert main(["--check", "--root", str(root)]) == 1
    assert main(["--root", str(root)]) == 0
    assert differences(root) == ["left over: gfx950_256/old-model/bf16_untuned_gemm.csv"]
