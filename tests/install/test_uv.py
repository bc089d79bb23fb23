"""Real environments made by uv, whose files share inodes with, or are links into, its package cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.install.support import VERSION, Done

UV = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
pytestmark = pytest.mark.skipif(UV is None, reason="needs uv")


def inventory(*roots: Path, inodes: bool) -> dict[str, object]:
    """Every file below the roots with bytes, mode, owner, time, link target and, where asked, inode."""
    found: dict[str, object] = {}
    for path in (path for root in roots for path in sorted(root.rglob("*"))):
        if "__pycache__" in path.parts or ".amd-overlay" in path.parts or path.is_dir():
            continue
        status = path.lstat()
        text = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
        link = os.readlink(path) if path.is_symlink() else None
        owner = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
        found[str(path)] = (text, owner, link, status.st_ino if inodes else None)
    return found


@pytest.mark.parametrize("mode", ["hardlink", "symlink", pytest.param("copy", marks=pytest.mark.full)])
def test_install_and_revert_stay_inside_one_environment(
    mode: str, wheel: Callable[[str], Path], tmp_path: Path, overlay: Callable[..., Done]
) -> None:
    cache = tmp_path / "cache"
    mine, neighbour = tmp_path / "mine", tmp_path / "neighbour"
    environ = {**os.environ, "UV_CACHE_DIR": str(cache), "UV_LINK_MODE": mode}
    assert UV is not None
    for prefix in (mine, neighbour):
        subprocess.run([UV, "venv", "-q", "--python", sys.executable, prefix], env=environ, check=True)
        command = [UV, "pip", "install", "-q", "--offline", "--no-deps", "--python", prefix / "bin" / "python"]
        subprocess.run([*command, wheel(VERSION)], env=environ, check=True)
    file = next(mine.glob("lib/python*")) / "site-packages" / "transformers/models/llama/modeling_llama.py"
    assert file.is_symlink() == (mode == "symlink")
    assert (file.lstat().st_nlink > 1) == (mode == "hardlink")
    before, others = inventory(mine, inodes=False), inventory(neighbour, cache, inodes=True)
    assert len(before) > 2000
    assert len(others) > 2000
    stock = file.read_bytes()
    done = overlay("install", "--transformers", "4.57", "--python", mine / "bin" / "python", "--json")
    assert (done.code, done.json["action"]) == (0, "installed"), done
    assert file.read_bytes() != stock
    assert inventory(neighbour, cache, inodes=True) == others
    assert overlay("revert", "--python", mine / "bin" / "python").code == 0
    assert inventory(mine, inodes=False) == before
    assert inventory(neighbour, cache, inodes=True) == others
