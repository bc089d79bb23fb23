"""What is published: the wheel holds the two import packages, their data and the command, and installs from nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest
import rocm_overlay

from tests.tools import distribution

ROOT = Path(__file__).resolve().parents[1]
MOMENT = "1700000000"
REQUIRED = {"typer", "packaging", "filelock", "rich"}


@dataclass(frozen=True)
class Built:
    """The sdist and the wheel that was made from it."""

    sdist: Path
    wheel: Path

    @property
    def archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.wheel)

    def metadata(self, name: str) -> str:
        (member,) = [entry for entry in self.archive.namelist() if entry.endswith(f".dist-info/{name}")]
        return self.archive.read(member).decode()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(*distribution.build(ROOT, tmp_path_factory.mktemp("dist"), MOMENT))


@pytest.fixture(scope="module")
def index(wheel: Callable[[str], Path]) -> tuple[str, ...]:
    """Options that let uv find the requirements in the folder of wheels, and nowhere else."""
    folder = wheel("4.57.6").parent
    if not all(list(folder.glob(f"{name}-*.whl")) for name in REQUIRED):
        pytest.skip(f"{folder} has no wheels of {', '.join(sorted(REQUIRED))}: `make wheels` downloads them")
    return ("--offline", "--no-index", "--find-links", str(folder))


@pytest.fixture(scope="module")
def clean(built: Built, index: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel and its requirements, and nothing else."""
    return distribution.environment(tmp_path_factory.mktemp("clean") / "venv", built.wheel, *index)


def ours_gone() -> dict[str, str]:
    """The variables of a user: no path of this checkout."""
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX")
    return {name: value for name, value in os.environ.items() if name not in dropped} | {"NO_COLOR": "1"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=ours_gone(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The wheel


def test_only_the_two_import_packages_are_top_level(built: Built) -> None:
    top = {name.split("/")[0] for name in built.archive.namelist()}
    assert {entry for entry in top if not entry.endswith(".dist-info")} == {"amd_ops", "rocm_overlay"}


def test_the_wheel_has_sources_and_data_and_nothing_else(built: Built) -> None:
    names = [name for name in built.archive.namelist() if ".dist-info/" not in name]
    allowed = {".py", ".typed", ".json", ".diff", ".toml", ".csv", ".md", ".jinja", ".txt"}  # .txt: declared sites
    assert {Path(name).suffix for name in names} <= allowed
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert folders.isdisjoint({"tests", "docs", "benchmarks", "examples", "__pycache__"})


def test_torch_and_transformers_are_never_required(built: Built) -> None:
    requires = Parser().parsestr(built.metadata("METADATA")).get_all("Requires-Dist")
    assert requires
    unconditional = {re.split(r"[<>=!~; ]", line)[0] for line in requires if "extra ==" not in line}
    assert unconditional == REQUIRED


def test_the_command_is_installed(built: Built) -> None:
    assert "overlay = rocm_overlay.cli:main" in built.metadata("entry_points.txt")


def test_every_committed_overlay_travels_in_the_wheel_byte_for_byte(built: Built) -> None:
    committed = [path for path in (ROOT / "overlays").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert committed
    for path in committed:
        inside = "rocm_overlay/overlays/" + path.relative_to(ROOT / "overlays").as_posix()
        assert built.archive.read(inside) == path.read_bytes(), inside


def test_data_resolve_the_same_way_from_a_wheel_and_from_this_checkout(built: Built, tmp_path: Path) -> None:
    built.archive.extractall(tmp_path)
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


def test_the_version_is_semantic_and_has_a_section_in_the_changelog() -> None:
    number = r"(?:0|[1-9]\d*)"
    assert re.fullmatch(rf"{number}\.{number}\.{number}(?:-[0-9A-Za-z.-]+)?", rocm_overlay.__version__)
    assert f"\n## [{rocm_overlay.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


# Licences


def test_licence_and_notice_travel_and_the_notice_is_right_about_derived_files(built: Built) -> None:
    names = built.archive.namelist()
    for name in ("LICENSE", "NOTICE"):
        (inside,) = [one for one in names if one.endswith(f".dist-info/licenses/{name}")]
        assert built.archive.read(inside) == (ROOT / name).read_bytes()
    assert Parser().parsestr(built.metadata("METADATA"))["License-Expression"] == "Apache-2.0"
    derived = [one for one in names if re.match(r"rocm_overlay/overlays/[\d.]+/models/.*\.py$", one)]
    assert "rocm_overlay/overlays/<line>/models/" in (ROOT / "NOTICE").read_text()
    assert len(derived) > 100
    for name in derived:
        text = built.archive.read(name).decode()
        first, rest = text.split("\n", 1)
        assert re.match(r"# amd-overlay/\d+ base=sha256:[0-9a-f]{64} .*modified by", first), name
        diff = built.archive.read(name.removesuffix(".py") + ".diff").decode().splitlines()
        removed = [line for line in diff if line.startswith("-") and re.search("copyright|licen[cs]e", line, re.I)]
        assert removed == [], name
        # Upstream ships some generated files without a header; all others must have kept theirs.
        assert ("Licensed under the Apache License" in rest) or "copyright" not in rest[:600].lower(), name


# The sdist


def test_the_sdist_has_what_a_build_and_a_reader_need_and_no_leftovers(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if "/" in member.name}
    assert {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "CHANGELOG.md", "Makefile"} <= names
    hidden = {name for name in names if name.startswith((".", "site/", "dist/")) or "__pycache__" in name}
    assert hidden <= {".gitignore", ".ci/run"}


def test_the_same_sources_give_the_same_bytes_elsewhere_and_later(built: Built, tmp_path: Path) -> None:
    """The second build is made from the unpacked sdist: another folder, other times."""
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = tmp_path.iterdir()
    for path in source.rglob("*.py"):
        os.utime(path, (1, 1))
    sdist, wheel = distribution.build(source, tmp_path / "again", MOMENT)
    assert wheel.read_bytes() == built.wheel.read_bytes()
    assert sdist.read_bytes() == built.sdist.read_bytes()


# Installed


def interpreter(minor: int) -> str | None:
    """An interpreter of Python 3.``minor``: on PATH, or where pyenv and uv keep theirs."""
    places = (".pyenv/versions/3.{}.*/bin/python", ".local/share/uv/python/cpython-3.{}.*/bin/python")
    found = [path for place in places for path in sorted(Path.home().glob(place.format(minor)))]
    return str(found[-1]) if found else shutil.which(f"python3.{minor}")


def install_and_revert(overlay: Path, wheel: Path, folder: Path) -> None:
    """A real transformers tree is overlaid and comes back."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    place = ("--site-packages", folder / "site", "--json")
    modeling = folder / "site/transformers/models/llama/modeling_llama.py"
    stock = modeling.read_bytes()
    run(overlay, "install", "--transformers", "4.57", *place, cwd=folder)
    assert modeling.read_bytes() != stock
    assert json.loads(run(overlay, "status", "--check", *place, cwd=folder))["state"] == "APPLIED"
    run(overlay, "revert", *place, cwd=folder)
    assert modeling.read_bytes() == stock


def test_the_wheel_works_in_an_environment_that_has_nothing_else(
    clean: Path, wheel: Callable[[str], Path], tmp_path: Path
) -> None:
    overlay = clean.with_name("overlay")
    assert run(overlay, "--version", cwd=tmp_path) == f"overlay {rocm_overlay.__version__}\n"
    install_and_revert(overlay, wheel("4.57.6"), tmp_path)


@pytest.mark.parametrize("minor", [10, 12, 13])
def test_the_wheel_works_on_other_pythons(
    minor: int, built: Built, index: tuple[str, ...], wheel: Callable[[str], Path], tmp_path: Path
) -> None:
    """The installer and the tables run; everything else, generated files too, is at least compiled."""
    base = interpreter(minor)
    if base is None:
        pytest.skip(f"there is no Python 3.{minor} on this machine")
    python = distribution.environment(tmp_path / "venv", built.wheel, *index, base=base)
    (purelib,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    run(python, "-W", "error", "-m", "compileall", "-q", purelib / "amd_ops", purelib / "rocm_overlay", cwd=tmp_path)
    overlay = python.with_name("overlay")
    assert "4096" in run(overlay, "tune", "shapes", "--model", "llama-3.1-8b", cwd=tmp_path)
    install_and_revert(overlay, wheel("4.57.6"), tmp_path)


def test_the_bill_of_materials_names_the_wheel_and_what_is_installed(built: Built, clean: Path, tmp_path: Path) -> None:
    distribution.bill_of_materials(clean, built.wheel, tmp_path / "sbom.json", MOMENT)
    bill = json.loads((tmp_path / "sbom.json").read_text())
    component = bill["metadata"]["component"]
    assert (bill["bomFormat"], component["name"]) == ("CycloneDX", "transformers-rocm-overlay")
    assert component["version"] == rocm_overlay.__version__
    assert component["hashes"] == [{"alg": "SHA-256", "content": distribution.sha256(built.wheel)}]
    names = {component["name"].lower() for component in bill["components"]}
    assert names >= REQUIRED
    assert names.isdisjoint({"torch", "transformers", "pip"})


def test_uv_can_run_it_as_a_tool(built: Built, index: tuple[str, ...], tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    cache = ("--cache-dir", tmp_path / "cache", "--python", sys.executable)
    out = run(uv, "tool", "run", *cache, *index, "--from", built.wheel, "overlay", "--version", cwd=tmp_path)
    assert out == f"overlay {rocm_overlay.__version__}\n"


def test_pipx_can_run_it(built: Built, index: tuple[str, ...], tmp_path: Path) -> None:
    offline = {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": index[-1], "PIPX_HOME": str(tmp_path / "pipx")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where pipx finds uv
    done = subprocess.run(
        [sys.executable, "-m", "pipx", "run", "--backend", "uv", "--spec", str(built.wheel), "overlay", "--version"],
        cwd=tmp_path, env={**ours_gone(), **offline, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"overlay {rocm_overlay.__version__}\n"
