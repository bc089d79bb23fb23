"""What ``overlay gen`` is asked for: the same options serve modeling files and patch configs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..commandline import DryRun, Json, complete_models, names
from .config.spec import Mode


@dataclass(frozen=True)
class Options:
    """The options of `overlay gen`, as typed."""

    target: Annotated[
        str | None,
        typer.Argument(metavar="[MODULE_OR_FILE]", help="A model, a modeling file or a *_patch_gen_config.py."),
    ] = None
    all_files: Annotated[bool, typer.Option("--all", help="Every modeling file of a package.")] = False
    from_installed: Annotated[bool, typer.Option("--from-installed", help="Read the installed transformers.")] = False
    source: Annotated[Path | None, typer.Option(metavar="PACKAGE_DIR", help="Read this transformers folder.")] = None
    models: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="With --all: only these models.", autocompletion=complete_models),
    ] = None
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder to write to.")] = None
    config_name: Annotated[
        str | None, typer.Option("-c", "--config-name", metavar="NAME", help="Variable of the patch config.")
    ] = None
    mode: Annotated[Mode | None, typer.Option(help="How a patch config is written out.")] = None
    list_sites: Annotated[
        bool, typer.Option("--list", help="List the sites, or without a target the patch configs; write nothing.")
    ] = False
    dry_run: DryRun = False
    diff: Annotated[
        bool, typer.Option("--diff", help="Print the diff, write nothing; for a patch config, save it beside.")
    ] = False
    check: Annotated[bool, typer.Option("--check", help="Exit 1 when DIR is not what would be written.")] = False
    fix: Annotated[bool, typer.Option("--fix", help="With --check: write what differs.")] = False
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Exit 0 although known sites are lost; with -o, record them.")
    ] = False
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say why sites were declined.")] = False
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes for --all; default: one per core.")
    ] = None
    as_json: Json = False

    @property
    def chosen(self) -> Sequence[str]:
        """The models that are named."""
        return names(self.models) or ()
