"""The results of a release, as the JSON that is committed below docs/coverage; docs/coverage.md shows it.

python -m tests.numeric.report --results DIR --source STOCK_PACKAGE --output docs/coverage

DIR may hold the results of some files: the rows of the others stay, and every row says with which recipes it was made.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rocm_overlay.overlays.recipes import recipe_set
from rocm_overlay.patchgen.coverage import results as generate_all
from rocm_overlay.patchgen.trees import open_tree

from docs.tools.reach import NOT_RUN, state

SCHEMA = "amd-overlay.numeric/2"


def edited_functions(source: Path, paths: Sequence[str] | None = None) -> dict[str, set[str]]:
    """Path of every generated file (or of some) and the functions that are edited in it."""
    made = generate_all(open_tree(source), recipe_set(), paths)
    header = ("marker", "import")
    return {one.path: {edit.qualname for edit in one.edits if edit.recipe not in header} for one in made if one.changed}


def row(path: str, folder: Path, edited: set[str]) -> dict[str, Any]:
    """What was compared of one file, or why nothing was."""
    name = path.rpartition("/")[2].removesuffix(".py")
    found: dict[str, Any] = {"path": path, "functions": len(edited)}
    stock, overlay = (_read(folder / f"{name}.{mode}.json") for mode in ("stock", "overlay"))
    if not stock.get("classes"):
        reasons = [stock["error"]] if "error" in stock else list(stock.get("failed", {}).values())
        first = " ".join(reasons[0].split()) if reasons else "the file defines no model with a config"
        return {**found, "compared": 0, "reason": first[:160]}
    if "error" in overlay or not overlay.get("off"):
        return {**found, "compared": 0, "reason": "overlay: " + overlay.get("error", "nothing was run")}
    ran = {name for names in stock["classes"].values() for name in names}
    generations = sum(key.endswith(" generation") for key in overlay["off"])
    deviating = {mode: [key for key, listed in overlay[mode].items() if listed] for mode in ("off", "on")}
    return {
        **found,
        "compared": len(overlay["off"]),
        "classes": sorted(stock["classes"]),
        "generations": generations,
        "without": {key: " ".join(why.split())[:160] for key, why in stock["without"].items()},
        "ran": len(edited & ran),
        "ops": overlay["ops"],
        "deviating": deviating,
    }


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {"error": NOT_RUN}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def is_equal(one: Mapping[str, Any]) -> bool:
    """Compared, at least one edited function ran, and nothing deviated."""
    return state(one) == "equal"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    release = open_tree(options.source).version
    edited = edited_functions(options.source)
    target, recipes = options.output / f"numeric-{release}.json", recipe_set().digest
    before = {one["path"]: one for one in _read(target).get("rows", ())}
    rows = []
    for path, functions in sorted(edited.items()):
        made = {**row(path, options.results, functions), "recipes": recipes}
        rows.append(before.get(path, made) if made.get("reason") == NOT_RUN else made)
    about = {"schema": SCHEMA, "release": release, "recipes": recipes, "rows": rows}
    target.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{release}: {sum(map(is_equal, rows))} of {len(rows)} equal")


if __name__ == "__main__":
    main()
