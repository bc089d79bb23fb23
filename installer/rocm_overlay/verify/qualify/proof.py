"""What the test files of ``overlay qualify`` call: every place is replayed and compared in one process, once."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from . import steps
from .command import reopen


def prove(work: Path, point: str) -> None:
    """Raise AssertionError unless the place agrees with its captured calls; ``work``: the qualification's folder."""
    result = _results(work.resolve()).get(point)
    assert result is not None, f"{work} has no place {point}"
    assert result["status"] == "valid", f"{point}: {result['status']}: {result.get('reason', '')}"


@lru_cache(maxsize=4)
def _results(work: Path) -> dict[str, dict[str, Any]]:
    """Replay every place of a qualification; a place that ends the process does not keep the others from their turn."""
    session, _, replayed = reopen(work, None, None)
    todo = [{**item, "time": False} for item in replayed["points"]]
    silent = steps.unwatched(lambda text: None)
    steps.replay(session, todo, lambda text: None, silent, limit=120.0, build_limit=1200.0, machine=replayed["machine"])
    return {item["point"]: session.results[item["id"]] for item in todo}
