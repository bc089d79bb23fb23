"""Links, shared inodes, owners, attributes and bytecode: what `cp -r` gets wrong."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest
from rocm_overlay.errors import TargetError
from rocm_overlay.install import inspection, operations
from rocm_overlay.install.session import Options
from rocm_overlay.install.transaction.states import State

from tests.install.support import STOCK, make_site, modeling, overlay_text, snapshot

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files to another user")


@pytest.fixture
def options(small_site: Path, bundle: Path) -> Options:
    return Options(site_packages=small_site, bundle=bundle)


def test_a_neighbour_that_shares_inodes_stays_untouched(options: Options, small_site: Path, tmp_path: Path) -> None:
    cache, neighbour = tmp_path / "cache", tmp_path / "neighbour"
    for folder in (cache, neighbour):
        folder.mkdir()
        for model in STOCK:
            os.link(modeling(small_site, model), folder / model)
    inodes = {path: path.stat().st_ino for folder in (cache, neighbour) for path in folder.iterdir()}
    before = snapshot(small_site)
    operations.install(options, "1.0")
    operations.revert(options)
    assert snapshot(small_site) == before
    assert {path: path.stat().st_ino for path in inodes} == inodes
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == STOCK
    assert {path.name: path.read_bytes() for path in neighbour.iterdir()} == STOCK


def test_backups_share_no_inode_with_the_tree(options: Options, small_site: Path) -> None:
    inode = modeling(small_site, "one").stat().st_ino
    operations.install(options, "1.0")
    assert inode not in {path.stat().st_ino for path in (small_site / ".amd-overlay" / "blobs").iterdir()}


@pytest.fixture
def linked(small_site: Path, tmp_path: Path) -> Path:
    """Turn model one's file into a link into a cache, as uv does with --link-mode symlink; return the cached file."""
    cached = tmp_path / "cache" / "modeling_one.py"
    cached.parent.mkdir()
    file = modeling(small_site, "one")
    file.rename(cached)
    file.symlink_to(cached)
    os.utime(file, ns=(10**18, 10**18 + 987654321), follow_symlinks=False)
    return cached


def test_a_link_is_replaced_itself_and_comes_back(options: Options, small_site: Path, linked: Path) -> None:
    before, cached = snapshot(small_site), linked.stat()
    operations.install(options, "1.0")
    assert not modeling(small_site, "one").is_symlink()
    assert modeling(small_site, "one").read_bytes() == overlay_text(STOCK["one"])
    assert (linked.read_bytes(), linked.stat().st_mtime_ns) == (STOCK["one"], cached.st_mtime_ns)
    operations.revert(options)
    assert snapshot(small_site) == before


def test_a_link_whose_target_changed_comes_back_as_a_file(options: Options, small_site: Path, linked: Path) -> None:
    operations.install(options, "1.0")
    linked.write_bytes(b"another release\n")
    outcome = operations.revert(options)
    assert modeling(small_site, "one").read_bytes() == STOCK["one"]
    assert not modeling(small_site, "one").is_symlink()
    assert any("restored as a file" in note for note in outcome.notes)
    assert inspection.status(options).state is State.STOCK


def test_extended_attributes_travel(options: Options, small_site: Path) -> None:
    file = modeling(small_site, "one")
    try:
        os.setxattr(file, "user.origin", b"\x00wheel")
    except OSError:
        pytest.skip("this file system has no user attributes")
    before = snapshot(small_site)
    operations.install(options, "1.0")
    assert os.getxattr(file, "user.origin") == b"\x00wheel"
    operations.revert(options)
    assert snapshot(small_site) == before


@ROOT_ONLY
def test_root_leaves_the_owner_in_place(options: Options, small_site: Path) -> None:
    for path in [small_site, *small_site.rglob("*")]:
        os.chown(path, 12345, 23456)
    before = snapshot(small_site)
    operations.install(options, "1.0")
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in small_site.rglob("*")}
    assert owners == {(12345, 23456)}
    operations.revert(options)
    assert snapshot(small_site) == before


def test_the_time_differs_in_its_second(options: Options, small_site: Path) -> None:
    before = {model: modeling(small_site, model).stat().st_mtime_ns // 10**9 for model in STOCK}
    operations.install(options, "1.0")
    for model, second in before.items():
        assert modeling(small_site, model).stat().st_mtime_ns // 10**9 != second


def compiled(file: Path, level: int, mode: py_compile.PycInvalidationMode) -> Path:
    target = importlib.util.cache_from_source(file, optimization=level or "")
    return Path(py_compile.compile(str(file), target, doraise=True, optimize=level, invalidation_mode=mode) or "")


@pytest.mark.parametrize("mode", list(py_compile.PycInvalidationMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_bytecode_never_outlives_its_source(
    options: Options, small_site: Path, level: int, mode: py_compile.PycInvalidationMode
) -> None:
    file = modeling(small_site, "one")
    pyc = compiled(file, level, mode)
    first = pyc.read_bytes()
    operations.install(options, "1.0")
    installed = pyc.read_bytes()
    assert installed[:8] == first[:8], "compiled again in the same mode"
    assert installed[16:] != first[16:], "the line numbers moved"
    operations.revert(options)
    assert pyc.read_bytes()[:16] == first[:16]
    assert compiled_module(file, level) == b"one\n"


def compiled_module(file: Path, level: int) -> bytes:
    flags = ["-" + "O" * level] if level else []
    code = f"import sys; sys.path.insert(0, {str(file.parent)!r}); import {file.stem}"
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, check=True).stdout


def test_bytecode_of_other_interpreters_and_of_a_prefix_folder_goes(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = next((environment / "lib").glob("python*")) / "site-packages"
    make_site(packages)
    prefix = tmp_path / "prefix"
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(prefix))
    real = os.path.realpath(packages / "transformers" / "models" / "one")
    mirrored, beside = prefix / real.lstrip("/"), Path(real) / "__pycache__"
    for folder in (mirrored, beside):
        folder.mkdir(parents=True)
        (folder / "modeling_one.cpython-34.opt-2.pyc").write_bytes(b"old")
        (folder / "modeling_one_more.cpython-34.pyc").write_bytes(b"of another module")
    outcome = operations.install(Options(python=str(environment / "bin" / "python"), bundle=bundle), "1.0")
    for folder in (mirrored, beside):
        assert [path.name for path in folder.iterdir()] == ["modeling_one_more.cpython-34.pyc"]
    assert any("other interpreters" in note for note in outcome.notes)


def test_a_linked_folder_inside_the_package_is_refused(options: Options, small_site: Path, tmp_path: Path) -> None:
    folder = modeling(small_site, "one").parent
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TargetError, match="is a link"):
        operations.install(options, "1.0")
    assert (tmp_path / "elsewhere" / "modeling_one.py").read_bytes() == STOCK["one"]
    assert not (small_site / ".amd-overlay").exists()
