"""Every single fault, and every pair of kills, ends in all-stock or all-overlay after the next command."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.install.transaction.errors import CANNOT_WRITE, ROLLED_BACK, UNRECOVERED, OverlayError
from rocm_overlay.install.transaction.fs import Fs

from tests.install.faults import harness
from tests.install.faults.harness import READING, SCENARIOS, WRITING, FaultFs, Scenario

ERRORS = (
    errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EPERM, errno.EDQUOT, errno.ESTALE, errno.EINTR,
)  # fmt: skip
EVERY = WRITING | READING | {"close"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small trees are made here; durability is not the point."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_every_system_call_is_counted() -> None:
    calls = {name for name in vars(Fs) if not name.startswith("_")}
    assert calls == EVERY


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_kill_at_every_writing_call(scenario: Scenario, disk: Path) -> None:
    results = _kills(scenario, disk, WRITING)
    assert len(results) > 20
    assert _bad(results) == []
    assert set(results) == set(scenario.allowed), "each end state is reached by some kill"


@pytest.mark.full
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_kill_at_every_call(scenario: Scenario, disk: Path) -> None:
    """A kill at a reading call leaves what the last writing call left: counted all the same."""
    results = _kills(scenario, disk, EVERY)
    assert len(results) > 100
    assert _bad(results) == []


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "persistent"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_error_at_every_writing_call(scenario: Scenario, persistent: bool, disk: Path) -> None:
    """The errors take turns; `make test-full` has each of them at each call, the reading ones included."""
    turn = 3 if persistent else 0
    errors = _errors(scenario, disk, WRITING, lambda point: ERRORS[(point + turn) % len(ERRORS)], persistent)
    assert _bad(errors) == []


@pytest.mark.full
@pytest.mark.parametrize("persistent", [False, True], ids=["once", "persistent"])
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_each_error_at_every_call(scenario: Scenario, number: int, persistent: bool, disk: Path) -> None:
    assert _bad(_errors(scenario, disk, EVERY, lambda point: number, persistent)) == []


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_short_write_at_every_write(scenario: Scenario, disk: Path) -> None:
    points = harness.count(scenario, disk / "count", frozenset({"write"}))
    results = []
    for point in range(1, points + 1):
        world = scenario.world(disk / str(point))
        trouble = _run_with(scenario, world, harness.short_write(point), frozenset({"write"}))
        results.append(trouble or harness.end_state(world, scenario))
        shutil.rmtree(world.root)
    assert _bad(results) == []


@pytest.mark.parametrize("scenario", [harness.INSTALL, harness.REVERT], ids=lambda scenario: scenario.name)
def test_kill_then_kill_the_recovery(scenario: Scenario, disk: Path) -> None:
    """Every pair: the command is killed before its i-th writing call, recovery before its j-th.

    fsync does nothing here, so that a kill before it is the kill before the call after it.
    """
    points = WRITING - {"fsync"}
    results = []
    for first in range(1, harness.count(scenario, disk / "count", points) + 1):
        stopped = scenario.world(disk / str(first))
        harness.killed_at(scenario, stopped, FaultFs(harness.kill(first, after=False), points))
        second = 0
        while True:
            second += 1
            world = harness.copy(stopped, disk / f"{first}-{second}")
            fs = FaultFs(harness.kill(second, after=False), points)
            code = harness.fork(lambda world=world, fs=fs: harness.next_command(world, fs))  # type: ignore[misc]
            results.append(harness.end_state(world, scenario))
            shutil.rmtree(world.root)
            if code != harness.KILLED:
                break
        shutil.rmtree(stopped.root)
    assert len(results) > 100, "far fewer pairs than calls make possible"
    assert _bad(results) == []


class InPlaceFs(FaultFs):
    """Seeded bug: writes into the target instead of replacing it."""

    def replace(self, source: str, name: str, at: int) -> None:
        fd = os.open(source, os.O_RDONLY, dir_fd=at)
        data = os.read(fd, 1 << 20)
        os.close(fd)
        target = os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, dir_fd=at)
        self.write(target, data)
        os.close(target)
        os.unlink(source, dir_fd=at)


class NoJournalFs(FaultFs):
    """Seeded bug: the journal never becomes visible."""

    def link(self, source: str, name: str, at: int) -> None:
        pass


class NoPurgeFs(FaultFs):
    """Seeded bug: stale bytecode stays."""

    def unlink(self, name: str, at: int) -> None:
        if not name.endswith(".pyc"):
            super().unlink(name, at)


class SingleWriteFs(FaultFs):
    """Seeded bug: takes one write call for a complete write."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        os.write(fd, bytes(data)[: max(1, len(data) // 2)])
        return len(data)


@pytest.mark.parametrize("seeded", [InPlaceFs, NoJournalFs, NoPurgeFs], ids=lambda seeded: seeded.__name__)
def test_the_harness_catches_a_seeded_bug(seeded: type[FaultFs], disk: Path) -> None:
    scenario = harness.INSTALL
    points = _count_with(seeded, scenario, disk / "count")
    results = []
    for point in range(1, points + 1):
        world = scenario.world(disk / str(point))
        harness.killed_at(scenario, world, seeded(harness.kill(point, after=True), WRITING))
        results.append(harness.end_state(world, scenario))
        shutil.rmtree(world.root)
    assert _bad(results), f"{seeded.__name__} went unnoticed"


def test_a_truncating_write_is_refused_before_anything_changes(disk: Path) -> None:
    world = harness.INSTALL.world(disk / "world")
    with pytest.raises(OverlayError) as caught:
        harness.INSTALL.act(world, SingleWriteFs(lambda number, name, call, args: call(), WRITING))
    assert caught.value.code == CANNOT_WRITE
    assert harness.end_state(world, harness.INSTALL) == "stock"


def test_install_and_revert_work_after_a_healed_kill(disk: Path) -> None:
    for point in range(1, harness.count(harness.INSTALL, disk / "count", WRITING) + 1, 5):
        world = harness.INSTALL.world(disk / str(point))
        harness.killed_at(harness.INSTALL, world, FaultFs(harness.kill(point, after=True), WRITING))
        harness.next_command(world)
        harness.run(world, harness.install_plan(world))
        assert harness.judge(world, harness.INSTALL.allowed) == "overlay"
        harness.run(world, harness.revert_plan(world))
        assert harness.judge(world, harness.INSTALL.allowed) == "stock"


def _kills(scenario: Scenario, disk: Path, counted: frozenset[str]) -> list[str]:
    results = []
    for point in range(1, harness.count(scenario, disk / "count", counted) + 1):
        for after in (False, True):
            world = scenario.world(disk / f"{point}-{after}")
            harness.killed_at(scenario, world, FaultFs(harness.kill(point, after=after), counted))
            results.append(harness.end_state(world, scenario))
            shutil.rmtree(world.root)
    return results


def _errors(
    scenario: Scenario, disk: Path, counted: frozenset[str], number: Callable[[int], int], persistent: bool
) -> list[str]:
    results = []
    for point in range(1, harness.count(scenario, disk / "count", counted) + 1):
        world = scenario.world(disk / str(point))
        trouble = _run_with(scenario, world, harness.fail(point, number(point), persistent=persistent), counted)
        results.append(trouble or harness.end_state(world, scenario))
        shutil.rmtree(world.root)
    return results


def _count_with(kind: type[FaultFs], scenario: Scenario, root: Path) -> int:
    fs = kind(lambda number, name, call, args: call(), WRITING)
    scenario.act(scenario.world(root), fs)
    return fs.count


def _run_with(scenario: Scenario, world: harness.World, act: Callable[..., Any], counted: frozenset[str]) -> str | None:
    """Run a scenario under a fault; anything but success or the right kind of OverlayError is bad."""
    try:
        scenario.act(world, FaultFs(act, counted))
    except OverlayError as error:
        if error.code not in (CANNOT_WRITE, ROLLED_BACK, UNRECOVERED):
            return f"BAD: {type(error).__name__} {error.code}: {error}"
        if error.code != UNRECOVERED and harness.judge(world, scenario.allowed) not in scenario.allowed:
            left = harness.judge(world, scenario.allowed)
            if "temporary files" not in left:
                return f"{left} right after {error}"
    except OSError as error:
        if scenario not in (harness.RECOVER_INSTALL, harness.RECOVER_REVERT):
            return f"BAD: a bare OSError came out: {error!r}"
    return None


def _bad(results: list[str]) -> list[str]:
    return sorted({result for result in results if result.startswith("BAD")})[:5]
