"""The power may go after any call: whatever the disk kept, the next command ends in all-stock or all-overlay."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.install.faults import harness, powercut
from tests.install.faults.harness import INSTALL, SCENARIOS, Scenario, World
from tests.install.faults.powercut import ModelFs, StoppedError


def after_power_cuts(
    scenario: Scenario, world: World, fs: ModelFs, disk: Path, *, last_first: bool = False
) -> Iterator[str]:
    """Judge every distinct disk that a cut after any recorded call may leave."""
    seen: set[str] = set()
    for cut in reversed(fs.cuts) if last_first else fs.cuts:
        for left in powercut.crash_states(cut):
            found = powercut.fingerprint(left, fs.top)
            if found in seen:
                continue
            seen.add(found)
            copy = World(disk / f"cut-{len(seen)}", world.before)
            powercut.materialise(left, fs.top, copy.root)
            yield harness.end_state(copy, scenario)
            shutil.rmtree(copy.root)


def cut_at_every_call(scenario: Scenario, disk: Path) -> list[str]:
    world = scenario.world(disk / "world")
    fs = ModelFs(world.root)
    scenario.act(world, fs)
    assert len(fs.cuts) > 10
    return list(after_power_cuts(scenario, world, fs, disk))


def bad(verdicts: Iterable[str]) -> list[str]:
    return sorted({verdict for verdict in verdicts if verdict.startswith("BAD")})[:5]


def test_the_model_and_a_real_disk_end_alike(disk: Path) -> None:
    for scenario in SCENARIOS:
        real, modelled = scenario.world(disk / "real"), scenario.world(disk / "modelled")
        scenario.act(real, harness.FastFs())
        fs = ModelFs(modelled.root)
        scenario.act(modelled, fs)
        copied = World(disk / "copied", modelled.before)
        powercut.materialise(fs.disk, fs.top, copied.root)
        verdict = harness.judge(copied, scenario.allowed)
        assert verdict == harness.judge(real, scenario.allowed)
        assert verdict in scenario.allowed
        assert {path: copied.state(path) for path in harness.PATHS if verdict == "stock"} == (
            real.before if verdict == "stock" else {}
        )
        assert fs.open == {}, "every descriptor was closed"
        for world in (real, modelled, copied):
            shutil.rmtree(world.root)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_power_cut_after_every_call(scenario: Scenario, disk: Path) -> None:
    verdicts = cut_at_every_call(scenario, disk)
    assert bad(verdicts) == []
    assert set(verdicts) <= set(scenario.allowed)
    assert len(verdicts) > 10, "far fewer states than cuts make possible"


@pytest.mark.full
def test_power_cut_after_a_killed_install_was_healed_and_done_again(disk: Path) -> None:
    """What the killed process had not synced is still pending when the next one builds on it."""
    total = 0
    world = INSTALL.world(disk / "world")
    whole = ModelFs(world.root)
    INSTALL.act(world, whole)
    for stop in range(1, _journal_cleared(whole), 9):
        fs = ModelFs(world.root, stop)
        with pytest.raises(StoppedError):
            INSTALL.act(world, fs)
        fs.resume()
        harness.next_command(world, fs)
        harness.run(world, harness.install_plan(world), fs)
        verdicts = list(after_power_cuts(INSTALL, world, fs, disk))
        assert bad(verdicts) == []
        total += len(verdicts)
    assert total > 1000


def _journal_cleared(fs: ModelFs) -> int:
    """Return the number of the call that removed the journal: from then on the install is done."""
    open_at = [number for number, cut in enumerate(fs.cuts) if any("txn.json" in inode.names for inode in cut.values())]
    return open_at[-1] + 1
