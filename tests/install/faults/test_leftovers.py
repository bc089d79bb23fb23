"""What recovery owes beyond the right texts: nothing left over, nothing rewritten without need, space before use."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import os
import pkgutil
from pathlib import Path

import pytest
from rocm_overlay.install import transaction
from rocm_overlay.install.transaction import journal
from rocm_overlay.install.transaction.fs import TEMPORARY
from rocm_overlay.install.transaction.place import BLOBS, JOURNAL, RECEIPT, RESCUED, STATE, temporary_name
from rocm_overlay.install.transaction.recovery import COMPLETED, ORPHANED, recover

from tests.forking import fork
from tests.install.faults import harness
from tests.install.faults.harness import ALL_STOCK, INSTALL, PACKAGE, PATHS, World

STRAY = ".stray.0123456789ab.ovtmp"


@pytest.fixture
def stopped(disk: Path) -> World:
    return harness.RECOVER_INSTALL.world(disk / "stopped")


@pytest.fixture
def reverting(disk: Path) -> World:
    return harness.RECOVER_REVERT.world(disk / "reverting")


@pytest.fixture
def finished(disk: Path) -> World:
    """An install whose last step, to remove its journal, was not made."""
    world = harness.build(disk / "finished")
    assert fork(lambda: harness.run(world, harness.install_plan(world), harness.UnclosedFs())) == harness.KILLED
    return world


@pytest.mark.parametrize("folder", [STATE, BLOBS, f"{RESCUED}/ab/models", PACKAGE, f"{PACKAGE}/sub"])
def test_temporary_files_of_earlier_commands_go(finished: World, folder: str) -> None:
    (finished.site / folder).mkdir(parents=True, exist_ok=True)
    (finished.site / folder / STRAY).write_bytes(b"left over")
    done = recover(finished.place(), harness.VERSION)
    assert done is not None
    assert done.outcome == COMPLETED
    assert not (finished.site / folder / STRAY).exists()


def test_bytecode_that_came_before_the_journal_went_is_purged(finished: World) -> None:
    for path in PATHS:
        file = finished.file(path)
        (file.parent / "__pycache__" / f"{file.stem}.cpython-311.pyc").write_bytes(b"compiled stock")
    recover(finished.place(), harness.VERSION)
    assert harness.judge(finished, INSTALL.allowed) == "overlay"


def test_folders_are_synced_before_the_journal_goes(finished: World) -> None:
    class RecordingFs(harness.FastFs):
        def __init__(self) -> None:
            self.events: list[str] = []

        def fsync(self, fd: int) -> None:
            self.events.append(os.readlink(f"/proc/self/fd/{fd}"))

        def unlink(self, name: str, at: int) -> None:
            self.events.append(name)
            super().unlink(name, at)

    fs = RecordingFs()
    recover(finished.place(fs), harness.VERSION)
    before = fs.events[: fs.events.index("txn.json")]
    assert {str(finished.file("")), str(finished.file("sub"))} <= set(before)


def test_the_receipt_of_a_release_that_is_gone_goes(reverting: World) -> None:
    assert (reverting.site / RECEIPT).exists()
    for path in PATHS:
        reverting.file(path).unlink()
    done = recover(reverting.place(), None)
    assert done is not None
    assert done.outcome == ORPHANED
    assert not (reverting.site / RECEIPT).exists()


def test_a_staged_copy_that_was_damaged_is_staged_again(reverting: World) -> None:
    found = journal.load(reverting.place())
    assert found is not None
    staged = [reverting.file(change.path).parent / change.temporary for change in found.changes]
    waiting = [path for path in staged if path.exists() and not path.is_symlink()]
    assert waiting
    for path in waiting:
        path.chmod(0o600)
        path.write_bytes(b"half a te")
    recover(reverting.place(), harness.VERSION)
    assert harness.judge(reverting, INSTALL.allowed) == "stock"


def test_a_file_that_is_right_already_is_not_written_again(stopped: World) -> None:
    right = [path for path in PATHS if stopped.file(path).read_bytes() == harness.stock(path)]
    before = {path: stopped.file(path).lstat().st_ino for path in right}
    assert 0 < len(right) < len(PATHS)
    recover(stopped.place(), harness.VERSION)
    assert {path: stopped.file(path).lstat().st_ino for path in right} == before


def test_staged_copies_go_before_texts_are_put_back(stopped: World) -> None:
    class FullFs(harness.FastFs):
        """Has no space for another file in the package while a staged one is there."""

        def create(self, name: str, at: int) -> int:
            folder = Path(os.readlink(f"/proc/self/fd/{at}"))
            inside = stopped.file("") in (folder, folder.parent)
            if inside and any(TEMPORARY.fullmatch(file.name) for file in stopped.file("").rglob("*")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().create(name, at)

    assert any(TEMPORARY.fullmatch(file.name) for file in stopped.file("").rglob("*"))
    recover(stopped.place(FullFs()), harness.VERSION)
    assert {path: stopped.file(path).read_bytes() for path in PATHS} == ALL_STOCK
    assert not (stopped.site / JOURNAL).exists()


def test_all_may_read_what_we_write_and_only_its_owner_may_write(finished: World) -> None:
    assert (finished.site / RECEIPT).stat().st_mode & 0o777 == 0o644
    assert (finished.site / JOURNAL).stat().st_mode & 0o777 == 0o644


def test_only_root_writes_for_another(finished: World, monkeypatch: pytest.MonkeyPatch) -> None:
    of_the_folder = (finished.site.stat().st_uid, finished.site.stat().st_gid)
    for uid, gid, owner in ((0, 7, of_the_folder), (7, 0, (7, 0))):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        monkeypatch.setattr(os, "getegid", lambda gid=gid: gid)
        assert finished.place().owner == owner


def test_the_journal_leaves_no_temporary_file(stopped: World) -> None:
    assert [file.name for file in (stopped.site / STATE).iterdir() if TEMPORARY.fullmatch(file.name)] == []


def test_folders_of_ours_are_for_all_to_enter_and_given_away_once(finished: World) -> None:
    class RecordingFs(harness.FastFs):
        def __init__(self) -> None:
            self.given: list[str] = []

        def lchown(self, name: str, at: int, uid: int, gid: int) -> None:
            self.given.append(name)

    fs = RecordingFs()
    tree = finished.place(fs).tree
    for _ in range(2):
        tree.make("one/two", (os.geteuid() + 1, 7))
        tree.make("mine", (os.geteuid(), os.getegid()))
        tree.make("nobody's")
    assert fs.given == ["one", "two"]
    os.umask(umask := os.umask(0))
    assert (finished.site / "one").stat().st_mode & 0o777 == 0o755 & ~umask


def test_a_probe_and_a_read_leave_no_descriptor_open(finished: World) -> None:
    place = finished.place()
    before = os.listdir("/proc/self/fd")
    place.tree.probe(PACKAGE, temporary_name("probe", "0123456789ab"))
    place.tree.read(RECEIPT)
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_became_a_link_is_not_followed(finished: World) -> None:
    (finished.site / STATE / "link").symlink_to("receipt.json")
    with finished.place().tree.directory(STATE) as at, pytest.raises(OSError, match="symbolic links"):
        harness.FastFs().open_read("link", at)


def test_names_of_temporary_files() -> None:
    names = [temporary_name(name, "0123456789ab") for name in ("modeling_x.py", "lock")]
    assert names == [".modeling_x.0123456789ab.ovtmp", ".lock.0123456789ab.ovtmp"]


def test_values_cannot_be_changed() -> None:
    """A plan, a journal or a receipt that changed between its making and its use would not be what was written."""
    names = [info.name for info in pkgutil.iter_modules(transaction.__path__, f"{transaction.__name__}.")]
    kinds = {kind for name in names for kind in vars(importlib.import_module(name)).values()
             if isinstance(kind, type) and dataclasses.is_dataclass(kind)}  # fmt: skip
    assert len(kinds) >= 12
    assert [kind.__name__ for kind in kinds if not kind.__dataclass_params__.frozen] == []  # type: ignore[attr-defined]
