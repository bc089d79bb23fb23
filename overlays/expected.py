"""How many sites each recipe must edit in each committed model, in every stock text of it, per release line.

A release is generated only when this holds exactly: a recipe that finds less has lost a model, one that finds more has
an edit that nobody has reviewed. ``python -m rocm_overlay.patchgen.release --line L --wheels DIR --declare`` prints
what the recipes find now, to be reviewed and put into expected_sites.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import expected_sites

Sites = Mapping[str, int]


def _read(table: str) -> dict[str, Sites]:
    """``model: recipe sites, recipe sites`` per line."""
    found: dict[str, Sites] = {}
    for line in table.strip().splitlines():
        model, _, listed = line.partition(": ")
        pairs = (one.split() for one in listed.split(", "))
        found[model] = {recipe: int(count) for recipe, count in pairs}
    return found


SITES: Mapping[str, Mapping[str, Sites]] = {line: _read(table) for line, table in expected_sites.TABLES.items()}
