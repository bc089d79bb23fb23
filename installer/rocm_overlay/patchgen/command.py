"""``overlay gen``: make the overlay of one modeling file, or of every modeling file of a transformers package.

``run`` is the whole command except argument parsing; the CLI wraps it. Nothing in files and reports depends on
the clock, the working directory or the order of a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from rocm_overlay.overlays.recipes import recipe_set

from ..console import complain, facts, print_json, raw, say, wants_json
from ..errors import DIFFERENT, DriftError, EditConflict, TargetError, UsageError, several
from .batch import Input, run_batch
from .config import command as config_command
from .config.load import is_config
from .engine import Result
from .header import GENERATOR
from .losses import Loss, find_losses, record
from .losses import as_json as losses_json
from .losses import lines as loss_lines
from .options import Options
from .recipe import RecipeSet
from .report import declined_lines, file_line, outcome_json, table, unified_diff
from .trees import Tree, installed_tree, open_tree, read_stock
from .writing import holds, refuse_package, write_files

_PLACES_OF_A_CAUSE = 8


@dataclass(frozen=True)
class Run:
    """What was made: results by path inside the package, and the errors of files that could not be read."""

    results: tuple[Result, ...]
    lost: tuple[Loss, ...] = ()
    version: str = ""
    written: tuple[str, ...] = field(default=())

    @property
    def files(self) -> dict[str, bytes]:
        """The texts to write: every file with at least one edit."""
        return {result.path: result.overlay for result in self.results if result.changed}


def run(options: Options) -> int:
    """Carry out ``overlay gen`` and return its exit code; results go to stdout, all else to stderr.

    0 done; 1 sites are lost that the nearest known release has (the files are written; ``--allow-loss`` accepts that).

    Raises:
        OverlayError: nothing was written. 1 ``--check`` found a difference, or an edit conflict; 2 options that do not
            fit; 4 a file that is not stock Python source; 5 the output folder cannot be written; 9 no such model, file
            or package; 70 a bug of ours.
    """
    if options.source is not None and options.from_installed:
        raise UsageError("usage", "--source and --from-installed exclude each other")
    if options.fix and not options.check:
        raise UsageError("usage", "--fix goes with --check")
    if _means_configs(options):
        _check_config_options(options)
        return config_command.run(options)
    _check_options(options)
    recipes = recipe_set()
    made = _finish(options, _generate(options, recipes))
    code = DIFFERENT if made.lost and not options.allow_loss else 0
    if wants_json():
        return print_json("gen", _as_json(made, recipes), code=code)
    _report(options, made)
    return code


def _means_configs(options: Options) -> bool:
    """A config is named, or none is named and --list or --check is to look for them below this folder."""
    if options.target is not None:
        return is_config(options.target) or options.config_name is not None
    return not options.all_files and (options.list_sites or options.check) and not options.models


def _check_config_options(options: Options) -> None:
    if options.all_files or options.models:
        raise UsageError("usage", "--all and --models are for modeling files", expected="a patch config alone")
    if options.check and options.dry_run:
        raise UsageError("usage", "--check writes nothing already", remedy="leave out --dry-run")


def _check_options(options: Options) -> None:
    if options.all_files == (options.target is not None):
        raise UsageError("usage", "name one MODULE_OR_FILE, or pass --all", expected="exactly one of them")
    if options.models and not options.all_files:
        raise UsageError("usage", "--models chooses among --all")
    if options.mode == "standalone" or options.config_name is not None:
        raise UsageError(
            "usage", "--mode standalone and -c go with a patch config", expected="a *_patch_gen_config.py file"
        )
    writes = not (options.dry_run or options.list_sites)
    if (options.check or (options.all_files and writes and not options.diff)) and options.output is None:
        raise UsageError(
            "usage", "no output folder", expected="-o DIR", remedy="pass -o DIR, --dry-run, --list or --diff"
        )


def _generate(options: Options, recipes: RecipeSet) -> Run:
    tree = _tree(options)
    batch = run_batch(_inputs(options, tree), recipes, jobs=options.jobs, shown=True)
    errors = list(batch.errors)
    for result in batch.results:
        try:
            result.require_clean()
        except EditConflict as error:
            errors.append(error)
    if errors:
        raise several(errors)
    version = (tree.version if tree is not None else None) or ""
    paths = tree.modeling_files if tree is not None and options.all_files and not options.models else ()
    lost = find_losses(version, batch.results, paths=paths) if version else ()
    return Run(batch.results, lost, version)


def _tree(options: Options) -> Tree | None:
    """The package to read from; None for a single file, which says no release."""
    if options.target is not None and (options.target.endswith(".py") or "/" in options.target):
        return None
    return open_tree(options.source) if options.source is not None else installed_tree()


def _inputs(options: Options, tree: Tree | None) -> list[Input]:
    """The files to read."""
    target = options.target
    if tree is None:
        assert target is not None
        file = Path(target)
        return [Input(_package_path(file), str(file), lambda: _read_file(file))]
    if target is not None:
        paths: Sequence[str] = [tree.path_of(target)]
    elif options.models:
        paths = sorted({tree.path_of(model) for model in options.chosen})
    else:
        paths = tree.modeling_files
    return [Input(path, tree.label(path), partial(read_stock, tree, path)) for path in paths]


def _package_path(file: Path) -> str:
    """``models/x/modeling_x.py`` of a file that lies in such folders, else its name."""
    parts = file.parts
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "models":
            return "/".join(parts[index:])
    return file.name


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TargetError("target", f"cannot read {file}", expected="a modeling file", found=error.strerror) from error


def _finish(options: Options, made: Run) -> Run:
    """Write or compare, where the options ask for it."""
    only_shown = options.dry_run or options.list_sites or (options.diff and not options.check)
    if options.output is None or only_shown:
        return made
    refuse_package(options.output)
    if options.check:
        different = [path for path, data in made.files.items() if not holds(options.output / path, data)]
        if different and not options.fix:
            raise DriftError(
                f"{options.output} is not what the generator makes",
                found=f"{len(different)} of {len(made.files)} files differ or are missing: {', '.join(different[:8])}",
                remedy="run again with --check --fix, and review the diff",
            )
        if not made.files:
            raise DriftError("--check compared nothing", expected="at least one file that the recipes edit")
        files = {path: made.files[path] for path in different}
    else:
        files = made.files
    if files:
        write_files(options.output, files)
    if made.lost and options.allow_loss and not options.check:
        record(options.output, made.version, made.lost)
    return replace(made, written=tuple(sorted(files)))


def _as_json(made: Run, recipes: RecipeSet) -> dict[str, object]:
    return {
        "generator": GENERATOR,
        "recipes": recipes.digest,
        "errors": [],
        "lost": losses_json(made.lost),
        "files": [
            {
                **facts(result, "path stock_sha256 changed"),
                "overlay_sha256": sha256(result.overlay).hexdigest(),
                "recipes": [outcome_json(outcome) for outcome in result.outcomes],
            }
            for result in made.results
        ],
        "table": table(made.results, recipes),
        "written": list(made.written),
    }


def _report(options: Options, made: Run) -> None:
    changed = [result for result in made.results if result.changed]
    if options.diff:
        for result in changed:
            raw(unified_diff(result.stock, result.overlay, result.path))
    elif options.output is None and not (options.dry_run or options.list_sites):
        for result in made.results:
            raw(result.overlay)
    if options.list_sites:
        for result in changed:
            for outcome in result.outcomes:
                for qualname, line in outcome.sites:
                    print(f"{result.path}:{line}: {outcome.recipe} {qualname}")
    where = f"; {len(made.written)} written to {options.output}" if made.written else "; nothing written"
    say(f"{len(changed)} of {len(made.results)} files get an overlay{where}")
    for result in made.results:
        if options.verbose or len(made.results) == 1:
            say(file_line(result))
        if options.verbose:
            say(*declined_lines(result))
    say(*loss_lines(made.lost, None if options.verbose else _PLACES_OF_A_CAUSE))
    if made.lost and not options.allow_loss:
        complain(
            "overlay gen: sites are lost, so the exit code is 1",
            "  next: review them with -v; --allow-loss accepts that, and with -o records it",
        )
