"""Random histories of what users do to a model: whatever the order, stock's numbers after every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("peft")

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from amd_ops import frozen, modules
from amd_ops.backends import shuffled
from amd_ops.weights import packing
from tests.habits.histories import REACHED, Histories


def run(examples: int, steps: int = 12, **more: Any) -> None:
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
            derandomize=examples < 100, suppress_health_check=list(HealthCheck), **more,
        ),
    )  # fmt: skip


def test_forty_histories() -> None:
    REACHED.clear()
    run(40)
    kinds = {what.split()[0] for what in REACHED}
    assert {"overlaid", "kernelized", "shuffled", "write", "touch", "untouch", "adapter", "train", "prepare"} <= kinds
    assert sum(count for what, count in REACHED.items() if what.startswith("write")) >= 40
    assert REACHED["run with shuffled copies"] >= 3
    assert sum(count for what, count in REACHED.items() if what.startswith("touch")) >= 20


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_five_hundred_histories() -> None:
    REACHED.clear()
    run(500, 20)


def one_copy_is_always_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.Packed, "fresh", lambda self, owner: "")


def a_frozen_weight_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "_frozen_among", lambda found: iter(()))
    monkeypatch.setattr(shuffled.Shuffled, "current", lambda self, weight: True)


def hooks_are_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "altered", lambda state: False)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", [one_copy_is_always_current, a_frozen_weight_does_not_tell, hooks_are_overlooked])
def test_the_machine_finds_a_planted_fault(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        run(200, phases=[Phase.generate], report_multiple_bugs=False)  # several at once come as a group
