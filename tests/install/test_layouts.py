"""The round trip in every layout that people have: each file comes back, and nothing beside the target changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.install.support import VERSION, environment, run_process
from tests.install.test_uv import UV


def tree_digest(*roots: Path, inodes: bool = False) -> str:
    """Hash path, bytes, mode, owner, time, attributes and link target of every file; bytecode and our state apart."""
    digest = hashlib.sha256()
    for root in roots:
        for path in sorted(root.rglob("*")):
            if "__pycache__" in path.parts or ".amd-overlay" in path.parts or (path.is_dir() and not path.is_symlink()):
                continue
            status = path.lstat()
            link = os.readlink(path) if path.is_symlink() else None
            xattrs = None if link else {name: os.getxattr(path, name) for name in os.listxattr(path)}
            text = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            facts = (text, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, xattrs, link)
            digest.update(repr((str(path), facts, status.st_ino if inodes else None)).encode())
    return digest.hexdigest()


def run(*command: object, **variables: str) -> None:
    extra = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1", **variables}
    subprocess.run([str(word) for word in command], env=environment(extra), check=True, capture_output=True)


def pip_install(python: object, wheel: Path, *more: object, **variables: str) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-compile", *more, wheel,
        **variables)  # fmt: skip


def venv(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def pip_layout(folder: Path, wheel: Path) -> list[str]:
    python = venv(folder / "env")
    pip_install(python, wheel)
    return ["--python", str(python)]


def uv_layout(mode: str) -> Callable[[Path, Path], list[str]]:
    def make(folder: Path, wheel: Path) -> list[str]:
        if UV is None:
            pytest.skip("needs uv")
        for name in ("env", "neighbour"):
            run(UV, "venv", "-q", "--python", sys.executable, folder / name)
            install = [
                UV,
                "pip",
                "install",
                "-q",
                "--offline",
                "--no-deps",
                "--python",
                folder / name / "bin" / "python",
            ]
            run(*install, wheel, UV_CACHE_DIR=str(folder / "cache"), UV_LINK_MODE=mode)
        return ["--python", str(folder / "env" / "bin" / "python")]

    return make


def target_layout(folder: Path, wheel: Path) -> list[str]:
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", folder / "env", wheel)
    return ["--site-packages", str(folder / "env")]


def user_layout(folder: Path, wheel: Path) -> list[str]:
    """A user site is a folder that a PYTHONUSERBASE names; it is addressed as a folder."""
    base = Path(os.path.realpath(sys.executable))
    run(
        base, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--user", "--break-system-packages", wheel,
        PYTHONUSERBASE=str(folder / "env"), PYTHONNOUSERSITE="",
    )  # fmt: skip
    return ["--site-packages", str(next((folder / "env" / "lib").glob("python*/site-packages")))]


def conda_layout(folder: Path, wheel: Path) -> list[str]:
    """The layout of conda: conda-meta in the prefix, files hard-linked from a package cache."""
    cache, prefix = folder / "cache" / "transformers-0", folder / "env"
    site = Path("lib") / "python3.11" / "site-packages"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", cache / site, wheel)
    for name in ("env", "neighbour"):
        shutil.copytree(cache, folder / name, copy_function=os.link)
    (prefix / "conda-meta").mkdir()
    (prefix / "conda-meta" / "transformers-0.json").write_text('{"name": "transformers"}')
    return ["--site-packages", str(prefix / site)]


LAYOUTS: dict[str, Callable[[Path, Path], list[str]]] = {
    "pip": pip_layout,
    "uv-hardlink": uv_layout("hardlink"),
    "uv-symlink": uv_layout("symlink"),
    "uv-copy": uv_layout("copy"),
    "target": target_layout,
    "user": user_layout,
    "conda": conda_layout,
}
QUICK = {"pip", "conda"}


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.full]) for name in LAYOUTS]
)
def test_the_round_trip_restores_everything(layout: str, wheel: Callable[[str], Path], tmp_path: Path) -> None:
    where = LAYOUTS[layout](tmp_path, wheel(VERSION))
    beside = [folder for folder in (tmp_path / "neighbour", tmp_path / "cache") if folder.exists()]
    before, others = tree_digest(tmp_path / "env"), tree_digest(*beside, inodes=True)
    links = list((tmp_path / "env").rglob("modeling_llama.py"))
    assert len(links) == 1
    if layout in ("uv-hardlink", "conda"):
        assert links[0].stat().st_nlink > 1
    assert links[0].is_symlink() == (layout == "uv-symlink")
    stock = links[0].read_bytes()
    done = run_process("install", "--transformers", "4.57", *where, "--json")
    assert (done.code, done.json.get("action")) == (0, "installed"), done
    assert links[0].read_bytes() != stock
    assert tree_digest(tmp_path / "env") != before
    assert tree_digest(*beside, inodes=True) == others
    assert run_process("revert", *where).code == 0
    assert tree_digest(tmp_path / "env") == before
    assert tree_digest(*beside, inodes=True) == others
