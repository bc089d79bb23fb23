"""What is run, and what the user is told when that cannot be decided."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rocm_overlay.errors import ForeignError, OverlayError, TargetError, UnsupportedError, UsageError
from rocm_overlay.install import catalog
from rocm_overlay.verify import plan, target
from rocm_overlay.verify.target import Interpreter


def test_the_default_plan_has_off_every_toggle_alone_and_all_on_every_tier() -> None:
    runs = plan.plan_runs(plan.parse_tiers(None), [])
    assert runs[0].id == "off"
    assert runs[0].settings == {}
    assert len(runs) == 1 + 4 * 5
    assert len({run.id for run in runs}) == len(runs)
    by_id = {run.id: run for run in runs}
    assert by_id["USE_AITER_GEMM/eager"].settings == {"use_aiter_gemm": "1", "tiers": "eager"}
    assert by_id["all/aiter"].settings["tiers"] == "aiter,torch,eager"
    assert set(by_id["all/torch"].toggles) == set(plan.SINGLE)


@pytest.mark.parametrize(
    ("text", "toggles"),
    [
        ("all", dict.fromkeys(plan.SINGLE, "1")),
        ("off", {}),
        ("USE_OPTIMIZED_OPS", {"USE_OPTIMIZED_OPS": "1"}),
        ("use_optimized_ops=auto, USE_AITER_GEMM=0", {"USE_OPTIMIZED_OPS": "auto", "USE_AITER_GEMM": "0"}),
    ],
)
def test_toggle_sets(text: str, toggles: dict[str, str]) -> None:
    assert plan.parse_toggles(text) == toggles


def test_chosen_tiers_and_sets_limit_the_plan() -> None:
    runs = plan.plan_runs(plan.parse_tiers("torch, torch"), ["USE_AITER_GEMM=1", "off"])
    assert [run.id for run in runs] == ["off", "USE_AITER_GEMM=1/torch"]


@pytest.mark.parametrize("text", ["cuda", "torch,cuda", "", ","])
def test_an_unknown_tier_is_named_with_the_accepted_ones(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan.parse_tiers(text)
    assert repr(text) in caught.value.message
    assert "torch, eager, triton, aiter" in caught.value.remedy


@pytest.mark.parametrize("text", ["USE_SOMETHING", "USE_AITER_GEMM,FAST=1", "AMD_OPS_TIERS=torch", ""])
def test_an_unknown_toggle_is_named_with_the_accepted_ones(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan.parse_toggles(text)
    assert "which is no toggle" in caught.value.message
    assert "USE_FUSED_PROJECTIONS" in caught.value.remedy


def test_an_unknown_dtype() -> None:
    with pytest.raises(UsageError, match="'int8'"):
        plan.check_dtype("int8")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "has no config.json"),
        ({"config.json": "{"}, "cannot be read as JSON"),
        ({"config.json": "[]"}, "names no model_type"),
        ({"config.json": '{"model_type": 3}'}, "names no model_type"),
    ],
)
def test_a_folder_that_is_no_model(files: dict[str, str], found: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=found):
        target.read_model(tmp_path)
    with pytest.raises(UsageError, match="is neither a folder nor in the local Hugging Face cache"):
        target.read_model(tmp_path / "absent")


def test_an_interpreter_without_torch(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    with pytest.raises(TargetError) as caught:
        target.probe(str(tmp_path / "bare" / "bin" / "python"))
    assert caught.value.id == "no-torch"
    assert "has no torch" in caught.value.message
    assert caught.value.code == 9


@pytest.mark.parametrize("text", [None, "#!/bin/sh\nexit 3\n", "#!/bin/sh\necho nonsense\n"])
def test_what_is_no_interpreter(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "python"
    if text is not None:
        path.write_text(text)
        path.chmod(0o755)
    with pytest.raises(TargetError) as caught:
        target.probe(str(path))
    assert caught.value.id == "no-interpreter"
    assert str(path) in caught.value.message


def interpreter(site: Path, release: str = "4.57.6") -> Interpreter:
    package = site / "transformers"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(f'__version__ = "{release}"\n')
    return Interpreter(sys.executable, "3.11.0", "2.13.0", release, package, None)


def entry(architecture: str = "llama", release: str = "4.57.6") -> catalog.FileEntry:
    (found,) = [e for e in catalog.load("4.57").files if e.model == architecture and release in e.releases]
    return found


def place(site: Path, text: bytes, architecture: str = "llama") -> Path:
    path = site / "transformers" / entry(architecture).path
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    return path


@pytest.mark.parametrize("installed", ["stock", "overlay"])
def test_both_texts_are_found_whichever_is_installed(installed: str, tmp_path: Path) -> None:
    known = entry()
    place(tmp_path, known.stock_bytes() if installed == "stock" else known.overlay_bytes())
    (source,) = target.find_sources(interpreter(tmp_path), "llama")
    assert source.module == "transformers.models.llama.modeling_llama"
    assert source.installed == installed
    assert source.stock == known.stock_bytes()
    assert source.overlay == known.overlay_bytes()
    json.dumps(source.as_json())


def test_the_text_of_another_release_gets_its_own_overlay(tmp_path: Path) -> None:
    other = entry(release="4.57.3")
    assert other.stock_sha256 != entry().stock_sha256
    place(tmp_path, other.stock_bytes())
    (source,) = target.find_sources(interpreter(tmp_path, "4.57.3"), "llama")
    assert source.overlay == other.overlay_bytes()


@pytest.mark.parametrize(
    ("release", "text", "kind", "said"),
    [
        ("4.57.6", b"# edited by hand\n", ForeignError, "neither the stock text nor ours"),
        ("4.99.0", b"# amd-overlay/1 base=sha256:0\n", ForeignError, "overlay of another version"),
        ("4.99.0", b"# another release\n", UnsupportedError, "there is no overlay for 'llama'"),
        ("4.99.0", None, UnsupportedError, "there is no overlay for 'llama'"),
    ],
)
def test_texts_without_an_overlay(
    release: str, text: bytes | None, kind: type[OverlayError], said: str, tmp_path: Path
) -> None:
    if text is not None:
        place(tmp_path, text)
    with pytest.raises(kind) as caught:
        target.find_sources(interpreter(tmp_path, release), "llama")
    assert said in caught.value.message
    assert release in caught.value.message
    assert caught.value.paths == (() if text is None else (str(tmp_path / "transformers" / entry().path),))
    if kind is UnsupportedError:
        assert "overlay gen --all" in caught.value.remedy


def test_a_model_type_without_an_overlay(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        target.find_sources(interpreter(tmp_path), "bart")
    assert "'bart'" in caught.value.message
    assert "llama" in caught.value.remedy
    assert caught.value.code == 3


def test_the_parent_process_never_imports_torch_or_transformers() -> None:
    code = "import sys, rocm_overlay.verify.command; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
