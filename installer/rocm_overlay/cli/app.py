"""Commands and options. Thin: a command parses, calls one function and prints its report; heavy imports are local."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rocm_overlay import __version__

from ..verify import cli as verify_cli
from . import output

if TYPE_CHECKING:
    from rocm_overlay.install.session import Options

app = typer.Typer(
    name="overlay",
    help="Make an installed transformers run on AMD GPUs through AMD's kernels, and put every byte back.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# click's class for a wrong command line; typer re-exports only its subclass, and newer releases carry their own click.
_CommandLineError: type[Exception] = typer.BadParameter.__bases__[0]

Python = Annotated[
    str | None, typer.Option("--python", metavar="PYTHON", help="Interpreter of the environment to work on.")
]
SitePackages = Annotated[
    str | None,
    typer.Option("--site-packages", metavar="DIR", help="Folder that contains transformers/; needs no interpreter."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; everything else goes to stderr.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"overlay {__version__}")
        raise typer.Exit


@app.callback()
def _overlay(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def install(
    transformers: Annotated[
        str, typer.Option("--transformers", metavar="SPEC", help="Release: 4.57, 4.57.6 or '>=4.57,<4.58'.")
    ],
    models: Annotated[
        str | None, typer.Option("--models", metavar="A,B", help="Only these models; others go back to stock.")
    ] = None,
    python: Python = None,
    site_packages: SitePackages = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> int:
    """Replace the modeling files of an installed transformers, atomically."""
    from rocm_overlay.install import operations

    outcome = operations.install(_options(python, site_packages, dry_run), transformers, _names(models))
    return output.outcome("install", outcome, as_json=json)


@app.command()
def revert(
    force: Annotated[bool, typer.Option("--force", help="Also replace edited files, after keeping a copy.")] = False,
    python: Python = None,
    site_packages: SitePackages = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> int:
    """Put every stock file back: bytes, mode, owner and time."""
    from rocm_overlay.install import operations

    outcome = operations.revert(_options(python, site_packages, dry_run), force=force)
    return output.outcome("revert", outcome, as_json=json)


@app.command()
def status(
    check: Annotated[bool, typer.Option("--check", help="Exit 1 unless the state is APPLIED.")] = False,
    python: Python = None,
    site_packages: SitePackages = None,
    json: Json = False,
) -> int:
    """Show what is applied, and whether the files agree."""
    from rocm_overlay.install import inspection
    from rocm_overlay.install.transaction.states import State

    found = inspection.status(_options(python, site_packages))
    output.status(found, as_json=json)
    return 1 if check and found.state is not State.APPLIED else 0


@app.command()
def diff(
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 when there is a difference.")] = False,
    python: Python = None,
    site_packages: SitePackages = None,
    json: Json = False,
) -> int:
    """Print the difference from stock to the present files."""
    from rocm_overlay.install import inspection

    target, differences = inspection.diff(_options(python, site_packages))
    output.diff(target, differences, as_json=json)
    return 1 if exit_code and differences else 0


@app.command(name="list")
def list_(json: Json = False) -> int:
    """List the releases and models that this bundle has overlays for."""
    from rocm_overlay.install import catalog

    output.listing([catalog.load(line) for line in catalog.lines()], as_json=json)
    return 0


@app.command()
def recover(python: Python = None, site_packages: SitePackages = None, json: Json = False) -> int:
    """Finish an interrupted install or revert. Every other command does this first, too."""
    from rocm_overlay.install import operations

    return output.outcome("recover", operations.recover_only(_options(python, site_packages)), as_json=json)


@app.command()
def env(
    profile: Annotated[
        Literal["off", "auto", "max"], typer.Option("--profile", help="off: stock; auto: by GPU; max: everything on.")
    ] = "auto",
    json: Json = False,
) -> int:
    """Print shell exports for the run-time toggles: eval "$(overlay env --profile max)"."""
    from .toggles import assignments

    output.environment(profile, assignments(profile), as_json=json)
    return 0


verify_cli.register(app)


@app.command()
def gen(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[MODULE_OR_FILE]", help="A model, a modeling file or a *_patch_gen_config.py."),
    ] = None,
    all_files: Annotated[bool, typer.Option("--all", help="Every modeling file of a package.")] = False,
    from_installed: Annotated[bool, typer.Option("--from-installed", help="Read the installed transformers.")] = False,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="PACKAGE_DIR", help="Read this transformers folder.")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", metavar="A,B", help="With --all: only these models.")
    ] = None,
    folder: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder to write to.")] = None,
    config_name: Annotated[
        str | None, typer.Option("-c", "--config-name", metavar="NAME", help="Variable of the patch config.")
    ] = None,
    mode: Annotated[
        Literal["overlay", "standalone"] | None, typer.Option("--mode", help="How a patch config is written out.")
    ] = None,
    list_sites: Annotated[
        bool, typer.Option("--list", help="List the sites, or without a target the patch configs; write nothing.")
    ] = False,
    dry_run: DryRun = False,
    diff_only: Annotated[
        bool, typer.Option("--diff", help="Print the diff, write nothing; for a patch config, save it beside.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 when DIR is not what would be written.")] = False,
    fix: Annotated[bool, typer.Option("--fix", help="With --check: write what differs.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say why sites were declined.")] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Processes for --all; default: one per core.")
    ] = None,
    json: Json = False,
) -> int:
    """Generate overlays from stock modeling files and the recipes, or files from patch configs."""
    _require_libcst("gen")
    from rocm_overlay.patchgen import command

    options = command.Options(
        target=target,
        all_files=all_files,
        source=source,
        from_installed=from_installed,
        models=_names(models) or (),
        output=folder,
        config_name=config_name,
        mode=mode,
        list_sites=list_sites,
        dry_run=dry_run,
        diff=diff_only,
        check=check,
        fix=fix,
        verbose=verbose,
        as_json=json,
        jobs=jobs,
    )
    return command.run(options)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def tune(context: typer.Context) -> int:
    """Find, check, merge and measure tuned GEMM tables; `overlay tune --help` lists its commands."""
    # A program of its own, loaded only here: its commands must not slow the start of the others.
    from rocm_overlay.tune.cli import app as tune_app

    code = typer.main.get_command(tune_app).main(
        context.args or ["--help"], prog_name="overlay tune", standalone_mode=False
    )
    return code if isinstance(code, int) else 0


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def bench(context: typer.Context) -> int:
    """Measure stock against overlaid code and report it; `overlay bench --help` lists the options."""
    from rocm_overlay.bench.cli import app as bench_app

    code = typer.main.get_command(bench_app).main(
        context.args or ["--help"], prog_name="overlay bench", standalone_mode=False
    )
    return code if isinstance(code, int) else 0


@app.command()
def profile(
    model: Annotated[str, typer.Option("--model", metavar="DIR", help="A saved model, or a folder with config.json.")],
    python: Annotated[
        str | None, typer.Option("--python", metavar="PYTHON", help="Interpreter with torch and transformers.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Batch size.")] = 1,
    isl: Annotated[int, typer.Option("--isl", help="Prompt length in tokens.")] = 128,
    attn: Annotated[str, typer.Option("--attn", help="Attention implementation of transformers.")] = "sdpa",
    cache: Annotated[str, typer.Option("--cache", help="dynamic or static.")] = "dynamic",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "bfloat16",
    folder: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder of the traces.")] = None,
    json: Json = False,
) -> int:
    """Trace one prefill and one decode step, stock and overlaid: the share of time in ops of ours, and the gaps."""
    from rocm_overlay.bench import command, profiling

    return profiling.run(
        command.Options(
            model=model,
            python=python,
            batch=str(batch),
            isl=str(isl),
            attn=attn,
            cache=cache,
            dtype=dtype,
            output=folder,
            as_json=json,
        )
    )


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def synth(context: typer.Context) -> int:
    """Generate and validate synthetic torch modules, and fuzz with them; `overlay synth --help` lists its commands."""
    from rocm_overlay.synth import cli

    return cli.run(context.args)


@app.command()
def drift(
    old: Annotated[str, typer.Argument(metavar="A", help="A release of ours, or a transformers folder or wheel.")],
    new: Annotated[str, typer.Argument(metavar="B", help="The one to move to.")],
    models: Annotated[str | None, typer.Option("--models", metavar="A,B", help="Only these models.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page.")] = None,
    json: Json = False,
) -> int:
    """Show what release B does to the places that are edited in A: exit 0 same, 1 regenerable, 2 conflict."""
    _require_libcst("drift")
    from rocm_overlay.patchgen.drift import command

    return command.run(old, new, models=_names(models) or (), html=html, json_output=json)


def _require_libcst(command: str) -> None:
    from importlib.util import find_spec

    from rocm_overlay.install.transaction.errors import UsageError

    if find_spec("libcst") is None:
        raise UsageError(
            "no-libcst",
            f"`overlay {command}` needs libcst, which is not installed.",
            remedy="run `pip install 'transformers-rocm-overlay[gen]'`",
        )


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _options(python: str | None, site_packages: str | None, dry_run: bool = False) -> Options:
    """Read what all commands on an environment share. An empty text is an unset shell variable, not the folder "."."""
    from rocm_overlay.install.session import Options
    from rocm_overlay.install.transaction.errors import UsageError

    for option, value, example in (
        ("--python", python, ".venv/bin/python"),
        ("--site-packages", site_packages, ".venv/lib/python3.11/site-packages"),
    ):
        if value is not None and not value.strip():
            raise UsageError(
                "empty-option",
                f"{option} was given an empty text, expected a path such as {example}.",
                remedy=f"pass a path, or leave {option} out for the active environment",
            )
    folder = None if site_packages is None else Path(site_packages)
    return Options(python=python, site_packages=folder, dry_run=dry_run)


def run(arguments: list[str]) -> int:
    """Run the program and return the exit code of its work, whether or not its report could be written."""
    command = _command(arguments)
    with output.guarded() as stdout:
        code = _run(command, arguments)
        sys.stdout.flush()
        if stdout is not None and stdout.problem is not None:
            output.unwritten(command, code, stdout.problem)
    return code


def _command(arguments: list[str]) -> str:
    return next((word for word in arguments if not word.startswith("-")), "overlay")


def _run(command: str, arguments: list[str]) -> int:
    """Run the program and return its exit code; every expected problem becomes one message."""
    from rocm_overlay.install.transaction.errors import (
        BUG,
        USAGE,
        CancelledError,
        OverlayError,
        UsageError,
        WriteError,
    )
    from rocm_overlay.install.transaction.signals import HardStop

    as_json = "--json" in arguments
    try:
        code = typer.main.get_command(app).main(arguments or ["--help"], prog_name="overlay", standalone_mode=False)
        if not arguments:
            return USAGE
        return code if isinstance(code, int) else 0
    except OverlayError as error:
        return output.failure(command, error, as_json=as_json)
    except _CommandLineError as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        hint = f"run `overlay {command} --help`" if command in _commands() else "run `overlay --help`"
        usage = UsageError("usage", message or "no command given", remedy=hint)
        return output.failure(command, usage, as_json=as_json)
    except (KeyboardInterrupt, HardStop, typer.Abort):
        cancelled = CancelledError(
            "interrupted",
            "Stopped by a signal; an open transaction is finished by the next overlay command.",
            remedy="run `overlay status`",
        )
        return output.failure(command, cancelled, as_json=as_json)
    except OSError as error:
        problem = WriteError(
            "system",
            f"The system refused: {error}.",
            remedy="check permissions and space of the environment, then run `overlay status`",
            paths=[name for name in (error.filename, error.filename2) if name],
        )
        return output.failure(command, problem, as_json=as_json)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug gets its own exit code and its traceback
        output.bug(command, error, as_json=as_json)
        return BUG


def _commands() -> set[str]:
    return {info.name or str(getattr(info.callback, "__name__", "")) for info in app.registered_commands}
