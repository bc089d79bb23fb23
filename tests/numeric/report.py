"""The results of a release, as the page and the JSON that are committed below docs/coverage.

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

SCHEMA = "amd-overlay.numeric/2"
NOT_RUN = "was not run"


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
    return bool(one["compared"] and one["ran"] and not any(one["deviating"].values()))


def page(about: Mapping[str, Any]) -> str:
    """The table for people."""
    rows = about["rows"]
    equal = [one for one in rows if is_equal(one)]
    other = [one for one in rows if one["compared"] and not is_equal(one)]
    absent = [one for one in rows if one.get("reason") == NOT_RUN]
    without = [one for one in rows if not one["compared"] and one not in absent]
    earlier = [one for one in rows if one not in absent and one["recipes"] != about["recipes"]]
    tokens = sum(one["generations"] > 0 for one in equal)
    lines = [
        f"# Numbers of the generated files of transformers {about['release']}",
        "",
        f"Of {len(rows)} generated files, small models of {len(equal)} were run on the stock and the overlaid tree and",
        "are equal: bit for bit with every toggle off; on the torch tier, with every toggle on, within the tolerances",
        "of `rocm_overlay.verify`. Compared are, of up to three classes of a file: the forward in fp32, 8 greedy",
        f"tokens of those that generate ({tokens} of these files), and the forward in bf16 of the first.",
        f"{len(other)} deviate or ran no edited function; {len(without)} could not be built or fed from their config.",
        *([f"{len(absent)} were not run yet: this page is a partial run."] if absent else []),
        *([f"{len(earlier)} of them ran with earlier recipes than today's {about['recipes']}."] if earlier else []),
        "",
        "| file | models | comparisons | of tokens | edited functions that ran | ops that took a call | off | on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in [*other, *equal]:
        states = ["deviates" if one["deviating"][mode] else "equal" for mode in ("off", "on")]
        counts = (len(one["classes"]), one["compared"], one["generations"])
        cells = (_name(one), *counts, f"{one['ran']} of {one['functions']}", ", ".join(one["ops"]), *states)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "Stock itself cannot do these with a small model, so they are not compared:", ""]
    lines += [
        f"* {_name(one)}, {key}: {why}" for one in (*other, *equal) for key, why in sorted(one["without"].items())
    ]
    lines += ["", "Not compared:", "", "| file | reason |", "|---|---|"]
    lines += [f"| {_name(one)} | {one['reason'].replace('|', chr(92) + '|')} |" for one in without]
    if absent:
        lines += ["", f"Not run yet: {', '.join(map(_name, absent))}."]
    return "\n".join(lines) + "\n"


def _name(one: Mapping[str, Any]) -> str:
    return str(one["path"]).rpartition("/")[2].removeprefix("modeling_").removesuffix(".py")


def main() -> None:
    """Write both files."""
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
    target.with_suffix(".md").write_text(page(about), encoding="utf-8")
    print(f"{release}: {sum(map(is_equal, rows))} of {len(rows)} equal")


if __name__ == "__main__":
    main()
