"""Disks that are full, read-only or immutable: one sentence, exit 5, and nothing half done."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from rocm_overlay.errors import OverlayError, WriteError
from rocm_overlay.install import operations
from rocm_overlay.install.session import Options
from rocm_overlay.install.transaction.fs import Fs
from rocm_overlay.install.transaction.lock import cannot_write
from rocm_overlay.install.transaction.place import Place

from tests.install.support import environment, make_bundle, make_site, snapshot

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare for a private mount"
)


def privately(script: str, site: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script with mounts of its own; $1 is the site folder, $OVERLAY runs the program."""
    command = ["unshare", "-m", "sh", "-ec", script, "sh", str(site)]
    extra = {"OVERLAY": f"{sys.executable} -m rocm_overlay"}
    done = subprocess.run(command, env=environment(extra), capture_output=True, text=True, timeout=120, check=False)
    if "mount" in done.stderr and "denied" in done.stderr:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    return done


def error_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    error = json.loads(done.stdout)["error"]
    assert isinstance(error, dict)
    assert done.returncode == error["code"]
    assert "Traceback" not in done.stderr
    return error


INSTALL = '$OVERLAY install --transformers 4.57 --site-packages "$1" --json'


def test_a_read_only_tree(site: Path) -> None:
    before = snapshot(site)
    done = privately(f'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; {INSTALL}', site)
    error = error_of(done)
    assert error["code"] == 5
    assert "Read-only file system" in str(error["message"])
    assert "Nothing was changed" in str(error["message"])
    assert str(site) in str(error["paths"])
    assert snapshot(site) == before
    assert not (site / ".amd-overlay").exists()


@pytest.mark.parametrize("room", ["size=16k", "nr_inodes=4", "nr_inodes=14", "size=100k", "size=200k"])
def test_a_full_disk(site: Path, tmp_path: Path, room: str) -> None:
    """The tree is moved to a small disk and what is left of that is as much as the parameter says."""
    before = snapshot(site)
    disk = tmp_path / "disk"
    disk.mkdir()
    used = sum((path.stat().st_size + 8191) // 4096 * 4096 for path in site.rglob("*") if path.is_file())
    inodes = sum(1 for _ in site.rglob("*")) + 2
    kind, _, amount = room.partition("=")
    options = f"size={used // 1024 + int(amount[:-1])}k" if kind == "size" else f"nr_inodes={inodes + int(amount)}"
    script = (
        f'mount -t tmpfs -o {options} tmpfs "{disk}"; cp -a "$1/." "{disk}/"; code=0; '
        f'{INSTALL.replace("$1", str(disk))} >"{tmp_path}/out" || code=$?; '
        f'{INSTALL.replace("install --transformers 4.57", "status").replace("$1", str(disk))} >"{tmp_path}/status"; '
        f'cp -a "{disk}/." "{tmp_path}/after/"; exit $code'
    )
    (tmp_path / "after").mkdir()
    done = privately(script, site)
    answer = json.loads((tmp_path / "out").read_text())
    assert done.returncode == 5, (done, answer)
    assert answer["error"]["code"] == 5
    assert answer["error"]["id"] == "no-space"
    assert json.loads((tmp_path / "status").read_text())["state"] == "STOCK"
    assert snapshot(tmp_path / "after") == before
    assert list((tmp_path / "after").rglob("*.ovtmp")) == []
    assert list((tmp_path / "after").glob(".amd-overlay/blobs/*")) == []


def test_a_failed_staging_takes_its_blobs_along(
    small_site: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, write = Options(site_packages=small_site, bundle=bundle), Fs.write
    operations.install(options, "1.0", ["one"])
    kept = list((small_site / ".amd-overlay" / "blobs").iterdir())

    def full(self: Fs, fd: int, data: bytes | memoryview) -> int:
        if bytes(data).startswith(b"# amd-overlay/"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, fd, data)

    monkeypatch.setattr(Fs, "write", full)
    with pytest.raises(WriteError, match="Nothing was changed"):
        operations.install(options, "1.0")
    assert list((small_site / ".amd-overlay" / "blobs").iterdir()) == kept
    assert len(kept) == 1


def test_a_refusal_names_the_owner_of_what_refused(small_site: Path) -> None:
    inner = small_site / "transformers" / "models" / "one"
    os.chown(inner, 12345, -1)
    for path in (inner, inner / "no-such-file"):
        refusal = cannot_write(Place.of(small_site), path, PermissionError(errno.EACCES, "Permission denied"))
        assert f"{inner} belongs to uid 12345, this process is uid 0" in refusal.message
        assert f"as the owner of {inner} " in refusal.remedy


def test_an_immutable_file_is_rolled_back(site: Path) -> None:
    if shutil.which("chattr") is None:
        pytest.skip("needs chattr")
    before = snapshot(site)
    file = site / "transformers" / "models" / "phi3" / "modeling_phi3.py"
    if subprocess.run(["chattr", "+i", file], capture_output=True, check=False).returncode != 0:
        pytest.skip("this file system has no immutable flag")
    try:
        done = privately(INSTALL, site)
    finally:
        subprocess.run(["chattr", "-i", file], check=True)
    assert error_of(done)["code"] == 10
    assert snapshot(site) == before


def test_a_tree_of_another_user() -> None:
    """Root may write everywhere, so the command runs in a child that has given up its rights."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        root = Path(folder)
        root.chmod(0o755)
        site, bundle = make_site(root / "site"), make_bundle(root / "bundle")
        before = snapshot(site)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                operations.install(Options(site_packages=site, bundle=bundle), "1.0")
            except OverlayError as error:
                code = error.code if "Permission denied" in error.message and "uid 65534" in error.message else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        assert snapshot(site) == before
        assert not (site / ".amd-overlay").exists()
