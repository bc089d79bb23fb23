"""``overlay gen``: make the overlay of one modeling file, or of every modeling file of a transformers package.

:func:`run` is the whole command except argument parsing; the CLI wraps it. Nothing in files and reports depends on
the clock, the working directory or the order of a set.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TextIO

from rocm_overlay.overlays.recipes import recipe_set

from ..install.transaction.errors import BUG, CANNOT_WRITE, DIFFERENT, FOREIGN, TARGET, USAGE
from .batch import Input, run_batch
from .config import command as config_command
from .config.load import is_config
from .config.patches import ConfigErrors
from .engine import Result
from .errors import DriftError, EditConflict, OutputError, PatchgenError, SourceError, TargetError
from .header import GENERATOR
from .options import Options
from .output import holds, refuse_package, write_files
from .recipe import RecipeSet
from .report import declined_lines, file_line, outcome_json, table, unified_diff, write_json, write_source
from .trees import installed_tree, open_tree, read_modeling

SCHEMA = "amd-overlay.gen/1"

_EXIT_CODES: Mapping[type[PatchgenError], int] = {
    DriftError: DIFFERENT,
    SourceError: FOREIGN,
    OutputError: CANNOT_WRITE,
    TargetError: TARGET,
}


class UsageError(PatchgenError):
    """The options do not fit together."""

    kind = "usage"


@dataclass(frozen=True)
class Run:
    """What was made: results by path inside the package, and the errors of files that could not be read."""

    results: tuple[Result, ...]
    errors: tuple[PatchgenError, ...] = ()
    written: tuple[str, ...] = field(default=())

    @property
    def files(self) -> dict[str, bytes]:
        """The texts to write: every file with at least one edit."""
        return {result.path: result.overlay for result in self.results if result.changed}


def run(options: Options, *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Carry out ``overlay gen`` and return its exit code.

    Codes: 0 done; 1 ``--check`` found a difference, or an edit conflict; 2 options that do not fit; 4 a file that is
    not stock Python source; 5 the output folder cannot be written; 9 no such model, file or package; 70 a bug of ours.
    Results go to ``out``, all else to ``err``. On any error nothing is written.
    """
    out = out or sys.stdout
    err = err or sys.stderr
    try:
        if _means_configs(options):
            _check_config_options(options)
            return config_command.run(options, out, err)
        _check_options(options)
        recipes = recipe_set()
        made = _generate(options, recipes, err)
        if made.errors:
            return _fail(made.errors, options, out, err)
        made = _finish(options, made)
    except ConfigErrors as several:
        return _fail(several.errors, options, out, err)
    except PatchgenError as error:
        return _fail((error,), options, out, err)
    if options.as_json:
        write_json(_as_json(made, recipes), out)
    else:
        _report(options, made, out, err)
    return 0


def _means_configs(options: Options) -> bool:
    """A config is named, or none is named and --list or --check is to look for them below this folder."""
    if options.target is not None:
        return is_config(options.target) or options.config_name is not None
    return not options.all_files and (options.list_sites or options.check) and not options.models


def _check_config_options(options: Options) -> None:
    if options.all_files or options.models:
        raise UsageError("--all and --models are for modeling files", expected="a patch config alone")
    if options.fix and not options.check:
        raise UsageError("--fix goes with --check")
    if options.check and options.dry_run:
        raise UsageError("--check writes nothing already", remedy="leave out --dry-run")
    if options.source is not None and options.from_installed:
        raise UsageError("--source and --from-installed exclude each other")


def _check_options(options: Options) -> None:
    if options.all_files == (options.target is not None):
        raise UsageError("name one MODULE_OR_FILE, or pass --all", expected="exactly one of them")
    if options.source is not None and options.from_installed:
        raise UsageError("--source and --from-installed exclude each other")
    if options.models and not options.all_files:
        raise UsageError("--models chooses among --all")
    if options.mode == "standalone" or options.config_name is not None:
        raise UsageError("--mode standalone and -c go with a patch config", expected="a *_patch_gen_config.py file")
    if options.fix and not options.check:
        raise UsageError("--fix goes with --check")
    writes = not (options.dry_run or options.list_sites)
    if (options.check or (options.all_files and writes and not options.diff)) and options.output is None:
        raise UsageError("no output folder", expected="-o DIR", remedy="pass -o DIR, --dry-run, --list or --diff")


def _generate(options: Options, recipes: RecipeSet, err: TextIO) -> Run:
    batch = run_batch(_inputs(options), recipes, jobs=options.jobs, err=err)
    errors = list(batch.errors)
    for result in batch.results:
        try:
            result.require_clean()
        except EditConflict as error:
            errors.append(error)
    return Run(batch.results, tuple(errors))


def _inputs(options: Options) -> list[Input]:
    """The files to read."""
    target = options.target
    if target is not None and (target.endswith(".py") or "/" in target):
        file = Path(target)
        return [Input(_package_path(file), str(file), lambda: _read_file(file))]
    tree = open_tree(options.source) if options.source is not None else installed_tree()
    if target is not None:
        paths: Sequence[str] = [tree.path_of(target)]
    elif options.models:
        paths = sorted({tree.path_of(model) for model in options.models})
    else:
        paths = tree.modeling_files
    return [Input(path, tree.label(path), partial(read_modeling, tree, path)) for path in paths]


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
        raise TargetError(f"cannot read {file}", expected="a modeling file", found=error.strerror) from error


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
    return Run(made.results, made.errors, tuple(sorted(files)))


def _fail(errors: Sequence[PatchgenError], options: Options, out: TextIO, err: TextIO) -> int:
    if options.as_json:
        listed = [
            {"id": error.kind, "message": error.message, "place": str(error.place or ""), "text": str(error)}
            for error in errors
        ]
        write_json({"schema": SCHEMA, "errors": listed}, out)
    for error in errors:
        print(f"error: {error}", file=err)
    if len(errors) > 1:
        print(f"error: {len(errors)} errors; nothing was written", file=err)
    return max(exit_code(error) for error in errors)


def exit_code(error: PatchgenError) -> int:
    """The exit code of an error."""
    if error.kind == "usage":
        return USAGE
    if error.kind == "internal":
        return BUG
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), DIFFERENT)


def _as_json(made: Run, recipes: RecipeSet) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "generator": GENERATOR,
        "recipes": recipes.digest,
        "errors": [],
        "files": [
            {
                "path": result.path,
                "stock_sha256": result.stock_sha256,
                "overlay_sha256": sha256(result.overlay).hexdigest(),
                "changed": result.changed,
                "recipes": [outcome_json(outcome) for outcome in result.outcomes],
            }
            for result in made.results
        ],
        "table": table(made.results, recipes),
        "written": list(made.written),
    }


def _report(options: Options, made: Run, out: TextIO, err: TextIO) -> None:
    changed = [result for result in made.results if result.changed]
    if options.diff:
        for result in changed:
            write_source(unified_diff(result.stock, result.overlay, result.path), out)
    elif options.output is None and not (options.dry_run or options.list_sites):
        for result in made.results:
            write_source(result.overlay, out)
    if options.list_sites:
        for result in changed:
            for outcome in result.outcomes:
                for qualname, line in outcome.sites:
                    print(f"{result.path}:{line}: {outcome.recipe} {qualname}", file=out)
    for result in made.results:
        if result.changed or options.verbose or len(made.results) == 1:
            print(file_line(result), file=err)
        if options.verbose:
            for text in declined_lines(result):
                print(text, file=err)
    where = f"; {len(made.written)} written to {options.output}" if made.written else "; nothing written"
    print(f"{len(changed)} of {len(made.results)} files get an overlay{where}", file=err)
