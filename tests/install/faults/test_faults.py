"""Every single fault, and every pair of kills, ends in all-stock or all-overlay after the next command."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay.errors import CANNOT_WRITE, ROLLED_BACK, UNRECOVERED, OverlayError
from rocm_overlay.install.transaction.fs import Fs

from tests.forking import fork
from tests.install.faults import harness
from tests.install.faults.harness import READING, SCENARIOS, WRITING, FaultFs, Scenario

ERRORS = (
    errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EPERM, errno.EDQUOT, errno.ESTALE, errno.EINTR,
)  # fmt: skip
EVERY = WRITING | READING | {"close"}


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
            code = fork(lambda world=world, fs=fs: harness.next_command(world, fs))  # type: ignore[misc]
            results.append(harness.end_state(world, scenario))
            shutil.rmtree(world.root)
            if code != harness.KILLED:
                break
        shutil.rmtree(stopped.root)
    assert len(results) > 100, "far fewer pairs than calls make possible"
    assert _bad(results) == []


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
