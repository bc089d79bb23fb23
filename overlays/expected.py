"""How many sites each recipe must edit in each committed model, in every stock text of it, per release line.

A release is generated only when this holds exactly: a recipe that finds less has lost a model, one that finds more has
an edit that nobody has reviewed. ``recipe.part 1`` says that one of the sites has the part: the cache of a rotation may
go where the rotation stays. ``python -m rocm_overlay.patchgen.release --line L --wheels DIR --declare`` writes what the
recipes find now into ``expected_sites/L.txt``, to be reviewed; ``make line`` does so for a new line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Sites = Mapping[str, int]
FOLDER = Path(__file__).parent / "expected_sites"


def read(table: str) -> dict[str, Sites]:
    """Return what ``model: recipe sites, recipe.part sites`` per line says."""
    found: dict[str, Sites] = {}
    for line in table.strip().splitlines():
        model, _, listed = line.partition(": ")
        pairs = (one.split() for one in listed.split(", "))
        found[model] = {what: int(count) for what, count in pairs}
    return found


def render(sites: Mapping[str, Sites]) -> str:
    """Return the table that :func:`read` takes: models sorted, sites as they are given."""
    rows = (
        f"{model}: " + ", ".join(f"{what} {count}" for what, count in sites[model].items()) for model in sorted(sites)
    )
    return "".join(f"{row}\n" for row in rows)


SITES: Mapping[str, Mapping[str, Sites]] = {
    file.stem: read(file.read_text(encoding="ascii")) for file in sorted(FOLDER.glob("*.txt"))
}
