"""Overlays from stock sources: `gen` and `drift`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rocm_overlay.commandline import App, Json, examples

from ..options import DryRun, names

app = App()


@app.command(
    epilog=examples(
        "overlay gen llama --diff",
        "overlay gen --all --from-installed -o my-overlays",
        "overlay gen --all --source ./transformers -o my-overlays --check",
    )
)
# long: one option per line, nothing else
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
    """Generate overlays from stock modeling files and the recipes.

    Patch configs (*_patch_gen_config.py) are generated from, too.
    """
    _require_libcst("gen")
    from rocm_overlay.patchgen import command
    from rocm_overlay.patchgen.options import Options

    options = Options(
        target=target,
        all_files=all_files,
        source=source,
        from_installed=from_installed,
        models=names(models) or (),
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
    epilog=examples(
        "overlay drift 4.57.6 5.23.0 --models llama,qwen3",
        "overlay drift old/transformers new/transformers",
        "overlay drift transformers-4.57.3-py3-none-any.whl transformers-4.57.6-py3-none-any.whl --html drift.html",
    )
)
def drift(
    old: Annotated[str, typer.Argument(metavar="A", help="A release of ours, or a transformers folder or wheel.")],
    new: Annotated[str, typer.Argument(metavar="B", help="The one to move to.")],
    models: Annotated[str | None, typer.Option("--models", metavar="A,B", help="Only these models.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page.")] = None,
    json: Json = False,
) -> int:
    """Show what another release does to the edited places.

    Exit 0: the same; 1: to be generated anew; 2: a conflict.
    """
    _require_libcst("drift")
    from rocm_overlay.patchgen.drift import command

    return command.run(old, new, models=names(models) or (), html=html, json_output=json)


def _require_libcst(command: str) -> None:
    from importlib.util import find_spec

    from rocm_overlay.install.transaction.errors import UsageError

    if find_spec("libcst") is None:
        raise UsageError(
            "no-libcst",
            f"`overlay {command}` needs libcst, which is not installed.",
            remedy="run `pip install 'transformers-rocm-overlay[gen]'`",
        )
