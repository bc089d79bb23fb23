"""Maintainers' entry: make or check the committed overlays of a release line.

python -m rocm_overlay.patchgen.release --line 4.57 --wheels DIR [--models llama,qwen3] [--check]
python -m rocm_overlay.patchgen.release --line 4.57 --source 4.57.1=DIR --source 4.57.3=FILE.whl
python -m rocm_overlay.patchgen.release --line 4.57 --wheels DIR --declare [--models new,ones]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from packaging.version import InvalidVersion, Version

from rocm_overlay.overlays import expected
from rocm_overlay.overlays.recipes import recipe_set

from ..errors import DriftError, MustFireError, OverlayError, Place, TargetError, nearest
from .engine import Result, generate
from .manifest import Entry, render
from .recipe import RecipeSet
from .report import file_line, unified_diff
from .trees import Tree, open_release, read_modeling
from .writing import write_files

OVERLAYS = Path(__file__).resolve().parent.parent / "overlays"


def build(
    line: str,
    models: Sequence[str],
    trees: Mapping[str, Tree],
    declared: Mapping[str, expected.Sites] | None = None,
) -> tuple[dict[str, bytes], tuple[Entry, ...]]:
    """Generate every overlay of a line in memory.

    Args:
        line: e.g. ``4.57``.
        models: names as in the line's table of ``rocm_overlay.overlays.expected.SITES``.
        trees: the source of each release of the line.
        declared: the sites that each model must have; default the line's table.

    Returns:
        The files by path relative to the line's folder, and the manifest's entries.

    Raises:
        OverlayError: a model is unknown, a file cannot be read, or a recipe did not do what is expected of it.
    """
    recipes = recipe_set()
    releases = sorted(trees, key=Version)
    entries: list[Entry] = []
    if declared is None:
        declared = expected.SITES.get(line, {})
    for model in sorted(set(models)):
        entries += _model_entries(line, model, {release: trees[release] for release in releases}, recipes, declared)
    files = {"manifest.json": render(line, releases, recipes.digest, entries)}
    for entry in entries:
        files[entry.payload] = entry.result.overlay
        files[entry.diff] = unified_diff(entry.result.stock, entry.result.overlay, entry.path)
    return files, tuple(entries)


def _model_entries(
    line: str, model: str, trees: Mapping[str, Tree], recipes: RecipeSet, declared: Mapping[str, expected.Sites]
) -> list[Entry]:
    sites = declared.get(model)
    if sites is None:
        raise TargetError(
            "target",
            f"no expected sites are declared for {model!r} in line {line}",
            expected=f"a model of overlays/expected_sites/{line}.txt",
            nearest=nearest(model, declared),
        )
    must = replace(recipes, recipes=tuple(replace(one, must_fire=one.name in sites) for one in recipes.recipes))
    table = f"overlays/expected_sites/{line}.txt"
    path = next(iter(trees.values())).path_of(model)
    texts: dict[str, tuple[bytes, list[str]]] = {}
    for release, tree in trees.items():
        data = read_modeling(tree, path)
        texts.setdefault(sha256(data).hexdigest(), (data, []))[1].append(release)
    sizes = {len(data) for data, _ in texts.values()}
    entries = []
    for data, found_in in texts.values():
        label = f"{path} of {found_in[0]}"
        result = _with_own_size(data, label, must, sizes)
        _compare_sites(result, sites, label, table)
        entries.append(Entry(model, path, tuple(found_in), result))
    return entries


def _with_own_size(data: bytes, label: str, recipes: RecipeSet, sizes: Iterable[int]) -> Result:
    """Pad until no stock text of the path is as long: equal length and second would let a stale .pyc pass."""
    taken = set(sizes)
    padding = 0
    while True:
        result = generate(data, label, recipes, padding=padding).require_clean()
        if len(result.overlay) not in taken:
            return result
        padding += 1


def _compare_sites(result: Result, sites: Mapping[str, int], label: str, table: str) -> None:
    for outcome in result.outcomes:
        wanted = {what: count for what, count in sites.items() if what.split(".")[0] == outcome.recipe}
        if outcome.counts != dict(sorted(wanted.items())):
            places = ", ".join(f"{name} (line {line})" for name, line in outcome.sites)
            raise MustFireError(
                f"recipe {outcome.recipe} edits another number of sites than {table} declares",
                place=Place(label),
                expected=_counted(wanted),
                found=f"{_counted(outcome.counts)}: {places}",
                remedy="review the sites; then change the recipe or the declaration",
            )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.items()) or "no sites"


def declare(models: Sequence[str], trees: Mapping[str, Tree]) -> dict[str, expected.Sites]:
    """Return what the recipes find in these models now, by model: the table of overlays/expected_sites.

    Raises:
        MustFireError: two stock texts of a model have another number of sites.
    """
    recipes = recipe_set()
    found: dict[str, expected.Sites] = {}
    for model in sorted(set(models)):
        texts: dict[str, expected.Sites] = {}
        for release, tree in trees.items():
            path = tree.path_of(model)
            result = generate(read_modeling(tree, path), path, recipes).require_clean()
            sites = {what: count for one in result.outcomes for what, count in one.counts.items()}
            if sites not in texts.values():
                texts[release] = sites
        if len(texts) > 1:
            listed = "; ".join(f"{release}: {_counted(sites)}" for release, sites in texts.items())
            raise MustFireError(f"the releases of the line differ in {model}", found=listed)
        found[model] = next(iter(texts.values()))
    return found


def check(folder: Path, files: Mapping[str, bytes]) -> None:
    """Compare generated files with a folder, byte for byte.

    Raises:
        DriftError: a file differs, is missing or is not generated; it names the first and counts the rest.
    """
    present = {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    problems = [f"{path} is missing" for path in sorted(set(files) - present)]
    problems += [f"{path} is not generated" for path in sorted(present - set(files))]
    for path in sorted(present & set(files)):
        if (folder / path).read_bytes() != files[path]:
            problems.append(f"{path} differs")
    if problems:
        raise DriftError(
            f"{folder} is not what the generator makes",
            expected=f"{len(files)} files as generated now",
            found="; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else ""),
            remedy="run the same command without --check, and review the diff",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the maintainers' command; 0 done, 1 drift found by ``--check`` or another error."""
    options = _parser().parse_args(arguments)
    try:
        trees = _trees(options.line, options.source, options.wheels)
        models = options.models.split(",") if options.models else list(expected.SITES.get(options.line, ()))
        if not models:
            raise TargetError(
                "target",
                f"no model is declared for line {options.line}",
                expected=f"overlays/expected_sites/{options.line}.txt, or --models",
                remedy=f"a new line is made by `make line RELEASE={max(trees, key=Version)}`",
            )
        if options.declare:
            found = declare(models, trees)
            table = expected.render({**expected.SITES.get(options.line, {}), **found})
            write_files(expected.FOLDER, {f"{options.line}.txt": table.encode("ascii")})
            print(expected.render(found), end="")
            print(f"{expected.FOLDER / options.line}.txt: {len(found)} models declared; review the diff")
            return 0
        files, entries = build(options.line, models, trees)
        folder = options.output or OVERLAYS / options.line
        if options.check:
            check(folder, files)
        else:
            write_files(folder, files, exact=True)
    except OverlayError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for entry in entries:
        print(f"{file_line(entry.result)} [{', '.join(entry.releases)}]")
    print(f"{folder}: {len(files)} files {'as generated' if options.check else 'written'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rocm_overlay.patchgen.release", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--line", required=True, help="the release line, e.g. 4.57")
    parser.add_argument("--models", help="comma list; default: every model that is declared for the line")
    parser.add_argument("--source", action="append", default=[], metavar="VERSION=PATH", help="package folder or wheel")
    parser.add_argument("--wheels", type=Path, help="folder of wheels: every transformers-<line>.* in it is a source")
    parser.add_argument(
        "--declare", action="store_true", help="write the sites that are found into overlays/expected_sites"
    )
    parser.add_argument("--check", action="store_true", help="compare instead of write")
    parser.add_argument("-o", "--output", type=Path, help="default: the committed folder of the line")
    return parser


def _trees(line: str, sources: Sequence[str], wheels: Path | None) -> dict[str, Tree]:
    paths: dict[str, Path] = {}
    for wheel in sorted(wheels.glob(f"transformers-{line}.*.whl")) if wheels else []:
        paths[wheel.name.split("-")[1]] = wheel
    for source in sources:
        version, equals, path = source.partition("=")
        if not equals:
            example = "VERSION=PATH, e.g. 4.57.6=site-packages/transformers"
            raise TargetError("target", f"cannot read --source {source}", expected=example)
        paths[version] = Path(path)
    if not paths:
        raise TargetError(
            "target", "no source given", expected="--wheels DIR with transformers wheels, or --source VERSION=PATH"
        )
    for version in paths:
        try:
            belongs = Version(version).release[:2] == Version(line).release
        except InvalidVersion as error:
            raise TargetError(
                "target", f"cannot read the version {version!r}", expected=f"a release of line {line}"
            ) from error
        if not belongs:
            raise TargetError("target", f"{version} is not a release of line {line}")
    return {version: open_release(version, path) for version, path in paths.items()}


if __name__ == "__main__":
    sys.exit(main())
