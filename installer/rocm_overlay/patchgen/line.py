"""Maintainers' entry: a new release, and a new line where it begins one, in one command.

python -m rocm_overlay.patchgen.line 5.24.0 --wheels DIR [--allow-loss] [--check]

Generates every modeling file of the release, compares with the last release that is known, writes what is known of it
(``overlays/known_sites``, ``docs/coverage``), declares the sites of the last line's models and generates the committed
overlays. What is lost is listed, with file, line and reason; nothing is written then without ``--allow-loss``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.version import Version

from rocm_overlay.overlays import expected
from rocm_overlay.overlays.recipes import recipe_set

from ..errors import DriftError, MustFireError, OverlayError, TargetError
from ..install import catalog
from . import coverage, losses, release
from .engine import Result
from .trees import Tree, open_release
from .writing import write_files

ROOT = Path(__file__).resolve().parents[3]


def models_of(line: str, tree: Tree) -> tuple[list[str], list[str]]:
    """Return the models to commit for a line and those that the line before has and this release has not.

    The line's own, where it is committed already; else those of the line before.
    """
    lines = catalog.lines()
    earlier = [one for one in lines if Version(one) < Version(line)]
    known = expected.SITES.get(line) or expected.SITES.get(earlier[-1] if earlier else lines[-1], {})
    return [one for one in known if _has(tree, one)], [one for one in known if not _has(tree, one)]


def _has(tree: Tree, model: str) -> bool:
    return tree.has(f"models/{model}/modeling_{model}.py")


def make(
    version: str, trees: Mapping[str, Tree], results: Sequence[Result], lost: Sequence[losses.Loss]
) -> dict[str, dict[str, bytes]]:
    """Return every file to commit, by folder of the checkout and path in it."""
    line = ".".join(version.split(".")[:2])
    models, _ = models_of(line, trees[version])
    declared = release.declare(models, {version: trees[version]})
    recipes = recipe_set()
    about = coverage.document(version, results, recipes, losses.as_json(lost))
    return {
        "overlays/known_sites": {f"{version}.json": losses.render(version, results)},
        "docs/coverage": coverage.files(about),
        "overlays/expected_sites": {f"{line}.txt": expected.render(declared).encode("ascii")},
        f"overlays/{line}": release.build(line, models, trees, declared)[0],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the maintainers' command; 0 done, 1 something is lost, differs (``--check``) or another error."""
    parser = argparse.ArgumentParser(prog="python -m rocm_overlay.patchgen.line", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("release", help="e.g. 5.24.0")
    parser.add_argument("--wheels", type=Path, required=True, help="folder of wheels: every release of the line in it")
    parser.add_argument("--allow-loss", action="store_true", help="write although something is lost, and record it")
    parser.add_argument("--check", action="store_true", help="compare instead of write")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except OverlayError as error:
        print(f"error: {error}\n  next: {error.remedy}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    version: str = options.release
    line = ".".join(version.split(".")[:2])
    trees = {
        wheel.name.split("-")[1]: open_release(wheel.name.split("-")[1], wheel)
        for wheel in sorted(options.wheels.glob(f"transformers-{line}.*.whl"))
    }
    if version not in trees:
        raise TargetError(
            "target",
            f"no wheel of transformers {version} in {options.wheels}",
            found=", ".join(trees) or f"no wheel of line {line}",
            remedy=f"run `make line RELEASE={version}`, which fetches it",
        )
    tree = trees[version]
    results = coverage.results(tree, recipe_set(), shown=True)
    lost = losses.find_losses(version, results, paths=tree.modeling_files, earlier=True)
    for text in losses.lines(lost):
        print(text)
    models, gone = models_of(line, tree)
    print(f"{version}: {len(models)} models to commit" + (f"; gone: {', '.join(gone)}" if gone else ""))
    if (lost or gone) and not (options.allow_loss or options.check):
        raise MustFireError(
            f"{version} loses {len(lost)} sites and {len(gone)} models",
            expected="nothing lost",
            remedy="make the recipes fit, or review the list and run again with --allow-loss (ALLOW_LOSS=1)",
        )
    for folder, files in make(version, trees, results, lost).items():
        if options.check:
            _check(ROOT / folder, files)
        else:
            write_files(ROOT / folder, files, exact=folder == f"overlays/{line}")
        print(f"{folder}: {len(files)} files {'as generated' if options.check else 'written'}")
    return 0


def _check(folder: Path, files: Mapping[str, bytes]) -> None:
    different = [
        name for name, data in files.items() if not (folder / name).is_file() or (folder / name).read_bytes() != data
    ]
    if different:
        raise DriftError(
            f"{folder} is not what is generated now",
            found=", ".join(different[:8]),
            remedy="run `make line` and review the diff",
        )


if __name__ == "__main__":
    sys.exit(main())
