"""What the test files of ``overlay qualify`` call: one place, replayed and compared in a process of its own."""

from __future__ import annotations

from pathlib import Path

from . import steps
from .command import reopen


def prove(work: Path, point: str) -> None:
    """Raise AssertionError unless the place agrees with its captured calls; ``work``: the qualification's folder."""
    session, _, replayed = reopen(work, None, None)
    todo = [{**item, "time": False} for item in replayed["points"] if item["point"] == point]
    assert todo, f"{work} has no place {point}"
    session.results = {}
    session.work.mkdir(exist_ok=True)
    found = steps.replay_once(session, todo)
    for result in found:
        assert result["status"] == "valid", f"{result['id']}: {result['status']}: {result.get('reason', '')}"
