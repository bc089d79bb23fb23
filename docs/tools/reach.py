"""Makes what docs/coverage.md shows from docs/coverage/*.json: the summary per release, and the data of its viewer.

The viewer runs without a server, too. A browser lets a page from the file system load scripts but no JSON, so the build
writes each release's data as a script that calls ``showReach``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "coverage"
NOT_RUN = "was not run"
STATES = ("equal", "deviates", "no edited function ran", "not compared", "not run")


def releases() -> list[str]:
    """Return the releases that have a file, oldest first."""
    found = (path.stem for path in FOLDER.glob("[0-9]*.json"))
    return sorted(found, key=lambda release: [int(part) for part in release.split(".")])


def state(row: Mapping[str, Any]) -> str:
    """Return what a row of the numbers shows, one of ``STATES``."""
    if not row["compared"]:
        return "not run" if row.get("reason") == NOT_RUN else "not compared"
    if any(row["deviating"].values()):
        return "deviates"
    return "equal" if row["ran"] else "no edited function ran"


def data(release: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Return both documents of a release; every row of the numbers has its state beside what was recorded."""
    reach = json.loads((folder / f"{release}.json").read_text(encoding="utf-8"))
    file = folder / f"numeric-{release}.json"
    numbers = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    for row in numbers["rows"] if numbers else ():
        row["state"] = state(row)
    return {"reach": reach, "numbers": numbers}


def script(release: str) -> str:
    """Return the script that hands the data of a release to the viewer."""
    return f"showReach({json.dumps(data(release), separators=(',', ':'), sort_keys=True)});\n"


def summary() -> Iterator[tuple[object, ...]]:
    """Yield per release: files, files with an edit, places lost, and the numbers by state."""
    for release in releases():
        found = data(release)
        reach, numbers = found["reach"], found["numbers"]
        rows = numbers["rows"] if numbers else []
        states = Counter(row["state"] for row in rows)
        earlier = sum(row["state"] != "not run" and row["recipes"] != numbers["recipes"] for row in rows)
        shown = [*(states[one] for one in STATES), earlier] if numbers else ["-"] * (len(STATES) + 1)
        yield (release, reach["files"], reach["changed"], len(reach["lost"]), *shown)


def build(site: Path) -> None:
    """Write the data of every release into a built site."""
    for release in releases():
        (site / "coverage" / f"{release}.js").write_text(script(release), encoding="utf-8")
