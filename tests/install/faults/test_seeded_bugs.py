"""A harness that misses a bug is broken: six bugs that real installers have are planted, and each must be caught."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.errors import OverlayError, UnrecoveredError, WriteError
from rocm_overlay.install.transaction import apply, blobs, fs
from rocm_overlay.install.transaction.entry import sha256
from rocm_overlay.install.transaction.fs import Tree
from rocm_overlay.install.transaction.place import BLOBS, Place

from tests.install.faults import harness
from tests.install.faults.harness import INSTALL, PATHS, REVERT, WRITING, FaultFs, World
from tests.install.faults.powercut import ModelFs
from tests.install.faults.test_powercut import after_power_cuts, bad


class NoFileSyncFs(ModelFs):
    """Seeded bug 1: files are never synced."""

    def fsync(self, fd: int) -> None:
        if self.disk[self.open[fd][0]].kind == "dir":
            super().fsync(fd)


class NoDirectorySyncFs(ModelFs):
    """Seeded bug 2: directories are never synced."""

    def fsync(self, fd: int) -> None:
        if self.disk[self.open[fd][0]].kind != "dir":
            super().fsync(fd)


class InPlaceModelFs(ModelFs):
    """Seeded bug 3: writes into the target, whose inode an other environment may share, instead of replacing it."""

    def replace(self, source: str, name: str, at: int) -> None:
        names = self._directory(at).names
        if name not in names:
            super().replace(source, name, at)
            return
        target, staged = self.disk[names[name]], self.disk[names[source]]
        if target.kind == "link":
            target = self.disk[self._walk(self.open[at][0], target.now.data.decode())]
        target.now.data = staged.now.data
        self._directory(at).change(**{source: None})


class NoJournalFs(FaultFs):
    """Seeded bug: the journal never becomes visible."""

    def link(self, source: str, name: str, at: int) -> None:
        pass


class NoPurgeFs(FaultFs):
    """Seeded bug 6: stale bytecode stays."""

    def unlink(self, name: str, at: int) -> None:
        if not name.endswith(".pyc"):
            super().unlink(name, at)


class HalfWritingFs(harness.FastFs):
    """A disk that stores less than it was asked to, and says so: every write stores at most 100 bytes."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, bytes(data)[:100])


def plant_linked_backup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded bug 4: the backup is a hard link to the file that is to be replaced."""

    def put(place: Place, data: bytes) -> None:
        for path in PATHS:
            file = place.tree.root / place.target(path)
            blob = place.tree.root / BLOBS / sha256(data)
            if file.read_bytes() == data and not file.is_symlink():
                os.link(file, blob)
                return
        original(place, data)

    original = blobs.put
    monkeypatch.setattr(apply.blobs, "put", put)


def plant_single_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeded bug 5: one write call is taken for a complete write."""
    monkeypatch.setattr(Tree, "_write_all", lambda self, fd, data: self.fs.write(fd, data))


def killed_everywhere(kind: type[FaultFs], disk: Path) -> list[str]:
    results = []
    counter = kind(lambda number, name, call, args: call(), WRITING)
    INSTALL.act(INSTALL.world(disk / "count"), counter)
    for point in range(1, counter.count + 1):
        world = INSTALL.world(disk / str(point))
        harness.killed_at(INSTALL, world, kind(harness.kill(point, after=True), WRITING))
        results.append(harness.end_state(world, INSTALL))
        shutil.rmtree(world.root)
    return results


@pytest.mark.parametrize("scenario", [INSTALL, REVERT], ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("kind", [NoFileSyncFs, NoDirectorySyncFs, InPlaceModelFs], ids=lambda kind: kind.__name__)
def test_the_power_cut_model_catches(kind: type[ModelFs], scenario: harness.Scenario, disk: Path) -> None:
    world = scenario.world(disk / "world")
    fs = kind(world.root)
    with contextlib.suppress(UnrecoveredError):  # writing in place is met by the verification, too late
        scenario.act(world, fs)
    verdicts = after_power_cuts(scenario, world, fs, disk, last_first=True)
    assert any(verdict.startswith("BAD") for verdict in verdicts), f"{kind.__name__} went unnoticed"


@pytest.mark.parametrize("kind", [NoJournalFs, NoPurgeFs], ids=lambda kind: kind.__name__)
def test_the_kills_catch(kind: type[FaultFs], disk: Path) -> None:
    assert bad(killed_everywhere(kind, disk)), f"{kind.__name__} went unnoticed"


def neighbour_writes_in_place(world: World) -> None:
    """Do what `cp` into another environment does: the text of the shared inode changes."""
    path = world.root / "neighbour" / "c.py"
    mode = path.stat().st_mode
    path.chmod(mode | 0o200)  # the file is read-only, and not everybody is root
    with path.open("r+b") as file:
        file.write(b"# of another tool\n")
    path.chmod(mode)


@pytest.mark.parametrize("planted", [False, True])
def test_a_linked_backup_is_caught(planted: bool, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if planted:
        plant_linked_backup(monkeypatch)
    world = INSTALL.world(disk / "world")
    harness.run(world, harness.install_plan(world))
    verdict = harness.judge(world, INSTALL.allowed)
    neighbour_writes_in_place(world)
    kept = blobs.get(world.place(), sha256(harness.stock(PATHS[2])))
    if planted:
        assert "shares its inode" in verdict
        assert kept is None, "the backup changed with the neighbour"
    else:
        assert verdict == "overlay"
        assert kept == harness.stock(PATHS[2])


@pytest.mark.parametrize("planted", [False, True])
def test_a_single_write_is_caught(planted: bool, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bug a disk that writes piecemeal is refused: what was staged is read back before it is used."""
    world = INSTALL.world(disk / "world")
    if planted:
        plant_single_write(monkeypatch)
        with pytest.raises(WriteError, match="read back differs"):
            harness.run(world, harness.install_plan(world), HalfWritingFs())
        assert harness.end_state(world, INSTALL) == "stock"
    else:
        harness.run(world, harness.install_plan(world), HalfWritingFs())
        assert harness.judge(world, INSTALL.allowed) == "overlay"


@pytest.mark.parametrize("planted", [False, True])
def test_a_single_write_without_reading_back_is_caught(
    planted: bool, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second half of the defence, taken away: either reading back or the verification refuses."""
    no_comparison: Callable[..., Any] = lambda *args: None  # noqa: E731
    monkeypatch.setattr(fs, "_compare", no_comparison)
    if planted:
        plant_single_write(monkeypatch)
    world = INSTALL.world(disk / "world")
    try:
        harness.run(world, harness.install_plan(world), HalfWritingFs())
    except OverlayError:
        assert planted
    verdict = harness.end_state(world, INSTALL)
    assert verdict.startswith("BAD") if planted else verdict == "overlay"
