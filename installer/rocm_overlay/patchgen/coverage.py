"""Maintainers' entry: what the recipes reach in a whole release, as a table to commit and to compare with.

python -m rocm_overlay.patchgen.coverage --source DIR_OR_WHEEL [-o docs/coverage] [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rocm_overlay.overlays.recipes import recipe_set

from .batch import Input, run_batch
from .engine import Result
from .errors import DriftError, PatchgenError, TargetError
from .output import write_files
from .recipe import RecipeSet
from .report import table
from .trees import Tree, open_tree, read_modeling

SCHEMA = "amd-overlay.coverage/1"


def results(tree: Tree, recipes: RecipeSet, paths: Sequence[str] | None = None) -> tuple[Result, ...]:
    """Generate every modeling file of a package, or some.

    Raises:
        PatchgenError: the first file that cannot be read, or whose edits are in conflict.
    """
    inputs = [
        Input(path, tree.label(path), partial(read_modeling, tree, path)) for path in paths or tree.modeling_files
    ]
    batch = run_batch(inputs, recipes)
    for error in batch.errors:
        raise error
    return tuple(result.require_clean() for result in batch.results)


def sites(result: Result) -> dict[str, int]:
    """Edited sites per recipe that has any."""
    return {outcome.recipe: len(outcome.sites) for outcome in result.outcomes if outcome.sites}


def document(release: str, made: Iterable[Result], recipes: RecipeSet) -> dict[str, Any]:
    """The table for programs."""
    made = tuple(made)
    changed = {result.path: sites(result) for result in made if result.changed}
    return {
        "schema": SCHEMA,
        "release": release,
        "recipes": recipes.digest,
        "files": len(made),
        "changed": len(changed),
        "table": table(made, recipes),
        "sites": changed,
    }


def page(about: Mapping[str, Any]) -> str:
    """The table for people."""
    lines = [
        f"# What the recipes reach in transformers {about['release']}",
        "",
        f"{about['changed']} of {about['files']} PyTorch modeling files get at least one edit.",
        "",
        "| recipe | files | sites | declined | what it looks for |",
        "|---|---|---|---|---|",
    ]
    for row in about["table"]:
        cells = (row["recipe"], row["files"]["applied"], row["sites"], sum(row["declined"].values()))
        lines.append(f"| {' | '.join(map(str, cells))} | {_cell(row['description'])} |")
    lines += ["", "Declined, by reason:", "", "| recipe | times | reason |", "|---|---|---|"]
    for row in about["table"]:
        for reason, times in sorted(row["declined"].items(), key=lambda one: (-one[1], one[0])):
            lines.append(f"| {row['recipe']} | {times} | {_cell(reason)} |")
    names = [row["recipe"] for row in about["table"]]
    lines += ["", f"| file | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for path, found in about["sites"].items():
        model = path.removeprefix("models/").removesuffix(".py")
        lines.append(f"| {model} | " + " | ".join(str(found.get(name, "")) for name in names) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def losses(committed: Mapping[str, Mapping[str, int]], made: Iterable[Result]) -> list[str]:
    """Every recipe that edits fewer sites of a file than the committed table says."""
    found = []
    for result in made:
        now = sites(result)
        for recipe, count in committed.get(result.path, {}).items():
            if now.get(recipe, 0) < count:
                found.append(f"{result.path}: {recipe} edits {now.get(recipe, 0)} sites, {count} before")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the maintainers' command; 0 done, 1 the committed table is not what is reached now, or another error."""
    parser = argparse.ArgumentParser(prog="python -m rocm_overlay.patchgen.coverage", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--source", type=Path, required=True, help="package folder or wheel")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/coverage"))
    parser.add_argument("--check", action="store_true", help="compare instead of write")
    options = parser.parse_args(arguments)
    try:
        tree = open_tree(options.source)
        if tree.version is None:
            raise TargetError(f"{options.source} does not say which release it is")
        recipes = recipe_set()
        about = document(tree.version, results(tree, recipes), recipes)
        files = {
            f"{tree.version}.json": (json.dumps(about, indent=1, sort_keys=True) + "\n").encode("utf-8"),
            f"{tree.version}.md": page(about).encode("utf-8"),
        }
        if options.check:
            _check(options.output, files)
        else:
            write_files(options.output, files)
    except PatchgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{about['release']}: {about['changed']} of {about['files']} files")
    return 0


def _check(folder: Path, files: Mapping[str, bytes]) -> None:
    different = [
        name for name, data in files.items() if not (folder / name).is_file() or (folder / name).read_bytes() != data
    ]
    if different:
        raise DriftError(
            f"{folder} is not what the recipes reach now",
            found=", ".join(different),
            remedy="run again without --check, and review the diff",
        )


if __name__ == "__main__":
    sys.exit(main())
