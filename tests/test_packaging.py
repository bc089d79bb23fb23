"""The wheel holds the two import packages, their data and the command: nothing else, and no torch requirement."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import rocm_overlay

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def _metadata(built: zipfile.ZipFile, name: str) -> str:
    (member,) = [entry for entry in built.namelist() if entry.endswith(f".dist-info/{name}")]
    return built.read(member).decode()


def test_only_the_two_import_packages_are_top_level(built: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in built.namelist()}
    assert {entry for entry in top if not entry.endswith(".dist-info")} == {"amd_ops", "rocm_overlay"}


def test_torch_and_transformers_are_never_required(built: zipfile.ZipFile) -> None:
    requires = Parser().parsestr(_metadata(built, "METADATA")).get_all("Requires-Dist")
    assert requires
    unconditional = [line for line in requires if "extra ==" not in line]
    assert not [line for line in unconditional if line.startswith(("torch", "transformers"))]
    assert {line.split(">")[0].split("<")[0].split("=")[0] for line in unconditional} == {
        "typer",
        "packaging",
        "filelock",
        "rich",
    }


def test_the_command_is_installed(built: zipfile.ZipFile) -> None:
    assert "overlay = rocm_overlay.cli:main" in _metadata(built, "entry_points.txt")


def test_every_committed_overlay_travels_in_the_wheel_byte_for_byte(built: zipfile.ZipFile) -> None:
    committed = [path for path in (ROOT / "overlays").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert committed
    for path in committed:
        inside = "rocm_overlay/overlays/" + path.relative_to(ROOT / "overlays").as_posix()
        assert built.read(inside) == path.read_bytes(), inside


def test_data_resolve_the_same_way_from_a_wheel_and_from_this_checkout(built: zipfile.ZipFile, tmp_path: Path) -> None:
    built.extractall(tmp_path)
    question = (
        "import pathlib, rocm_overlay; root = pathlib.Path(rocm_overlay.__file__).parent;"
        "print(*sorted(p.name for p in root.joinpath('overlays').iterdir() if p.name[0] != '_'))"
    )
    from_wheel = subprocess.run(
        [sys.executable, "-S", "-c", question],
        env={"PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    here = Path(rocm_overlay.__file__).parent / "overlays"
    assert from_wheel.stdout.split() == sorted(path.name for path in here.iterdir() if path.name[0] != "_")


def test_two_builds_are_the_same_bytes(built: zipfile.ZipFile, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    (again,) = tmp_path.glob("*.whl")
    assert built.filename is not None
    assert again.read_bytes() == Path(built.filename).read_bytes()
