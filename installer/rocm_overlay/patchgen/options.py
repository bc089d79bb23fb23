"""What ``overlay gen`` is asked for: the same options serve modeling files and patch configs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..commandline import DryRun, complete_models, names
from .config.spec import Mode


@dataclass(frozen=True)
class Options:
    """The options of `overlay gen`, as typed."""

    target: Annotated[
        str | None, Argument(metavar="[MODULE_OR_FILE]", help="A model, a modeling file or a *_patch_gen_config.py.")
    ] = None
    all_files: Annotated[bool, Option("--all", help="Every modeling file of a package.")] = False
    from_installed: Annotated[bool, Option(help="Read the installed transformers.")] = False
    source: Annotated[Path | None, Option(metavar="PACKAGE_DIR", help="Read this transformers folder.")] = None
    models: Annotated[
        str | None, Option(metavar="A,B", help="With --all: only these models.", autocompletion=complete_models)
    ] = None
    output: Annotated[Path | None, Option("-o", "--output", metavar="DIR", help="Folder to write to.")] = None
    config_name: Annotated[
        str | None, Option("-c", "--config-name", metavar="NAME", help="Variable of the patch config.")
    ] = None
    mode: Annotated[Mode | None, Option(help="How a patch config is written out.")] = None
    list_sites: Annotated[
        bool, Option("--list", help="List the sites, or without a target the patch configs; write nothing.")
    ] = False
    dry_run: DryRun = False
    diff: Annotated[bool, Option(help="Print the diff, write nothing; for a patch config, save it beside.")] = False
    check: Annotated[bool, Option(help="Exit 1 when DIR is not what would be written.")] = False
    fix: Annotated[bool, Option(help="With --check: write what differs.")] = False
    allow_loss: Annotated[bool, Option(help="Exit 0 although known sites are lost; with -o, record them.")] = False
    verbose: Annotated[bool, Option("-v", "--verbose", help="Say why sites were declined.")] = False
    jobs: Annotated[int | None, Option(metavar="N", min=1, help="Processes for --all; default: one per core.")] = None

    @property
    def chosen(self) -> Sequence[str]:
        """The models that are named."""
        return names(self.models) or ()
