"""Maintainers' entry: what the recipes reach in a whole release, as data to commit and to compare with.

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

from ..errors import DriftError, OverlayError, TargetError
from .batch import Input, run_batch
from .engine import Result
from .losses import KNOWN, as_json, find_losses, render
from .recipe import RecipeSet
from .report import table
from .trees import Tree, open_tree, read_modeling
from .writing import write_files

SCHEMA = "amd-overlay.coverage/1"


def results(
    tree: Tree, recipes: RecipeSet, paths: Sequence[str] | None = None, *, shown: bool = False
) -> tuple[Result, ...]:
    """Generate every modeling file of a package, or some.

    Raises:
        OverlayError: the first file that cannot be read, or whose edits are in conflict.
    """
    inputs = [
        Input(path, tree.label(path), partial(read_modeling, tree, path)) for path in paths or tree.modeling_files
    ]
    batch = run_batch(inputs, recipes, shown=shown)
    for error in batch.errors:
        raise error
    return tuple(result.require_clean() for result in batch.results)


def sites(result: Result) -> dict[str, int]:
    """Edited sites per recipe that has any, and how many of them have each part."""
    return {what: count for outcome in result.outcomes for what, count in outcome.counts.items()}


def document(
    release: str, made: Iterable[Result], recipes: RecipeSet, lost: Sequence[Mapping[str, object]] = ()
) -> dict[str, Any]:
    """The table for programs; ``lost`` is what the release before had and this one has not."""
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
        "lost": list(lost),
    }


def files(about: Mapping[str, Any]) -> dict[str, bytes]:
    """The file of a release in docs/coverage, by name; docs/coverage.md shows it."""
    return {f"{about['release']}.json": (json.dumps(about, indent=1, sort_keys=True) + "\n").encode("utf-8")}


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
    parser.add_argument("--known", type=Path, default=KNOWN, help="folder of what is known of releases")
    parser.add_argument("--check", action="store_true", help="compare instead of write")
    options = parser.parse_args(arguments)
    try:
        tree = open_tree(options.source)
        if tree.version is None:
            raise TargetError("target", f"{options.source} does not say which release it is")
        recipes = recipe_set()
        made = results(tree, recipes)
        lost = find_losses(tree.version, made, paths=tree.modeling_files, earlier=True)
        about = document(tree.version, made, recipes, as_json(lost))
        known = {f"{tree.version}.json": render(tree.version, made)}
        for folder, written in ((options.output, files(about)), (options.known, known)):
            if options.check:
                _check(folder, written)
            else:
                write_files(folder, written)
    except OverlayError as error:
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
