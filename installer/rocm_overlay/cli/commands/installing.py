"""What changes an environment: `install`, `revert` and `recover`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rocm_overlay.commandline import App, Json, examples

from .. import output
from ..options import DryRun, Python, SitePackages, names, target_options

app = App()


@app.command(
    epilog=examples(
        "overlay install --transformers 4.57",
        "overlay install --transformers 4.57.6 --models llama,qwen3 --python .venv/bin/python",
        "overlay install --transformers 4.57 --mode hook",
        "overlay install --transformers 4.57 --generated my-overlays",
    )
)
def install(
    transformers: Annotated[
        str, typer.Option("--transformers", metavar="SPEC", help="Release: 4.57, 4.57.6 or '>=4.57,<4.58'.")
    ],
    models: Annotated[
        str | None, typer.Option("--models", metavar="A,B", help="Only these models; others go back to stock.")
    ] = None,
    mode: Annotated[
        Literal["files", "hook"],
        typer.Option("--mode", help="files: replace them; hook: add one .pth file that serves overlays at import."),
    ] = "files",
    generated: Annotated[
        Path | None,
        typer.Option("--generated", metavar="DIR", help="Use overlays that `overlay gen --all -o DIR` made."),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option("--adopt", help="Overlay files that others edited, too; revert returns exactly their text."),
    ] = False,
    python: Python = None,
    site_packages: SitePackages = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> int:
    """Replace modeling files of an installed transformers, atomically."""
    from rocm_overlay.install import operations

    options = target_options(python, site_packages, dry_run)
    if mode == "hook":
        from rocm_overlay.install.hook import installed

        done = installed.install(options, transformers, names(models), generated=generated, adopt=adopt)
        return output.hook("install", done, as_json=json)
    outcome = operations.install(options, transformers, names(models), generated=generated, adopt=adopt)
    return output.outcome("install", outcome, as_json=json)


@app.command(epilog=examples("overlay revert", "overlay revert --dry-run", "overlay revert --force"))
def revert(
    force: Annotated[bool, typer.Option("--force", help="Also replace edited files, after keeping a copy.")] = False,
    python: Python = None,
    site_packages: SitePackages = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> int:
    """Put every stock file back: bytes, mode, owner and time."""
    from rocm_overlay.install import operations

    outcome = operations.revert(target_options(python, site_packages, dry_run), force=force)
    return output.outcome("revert", outcome, as_json=json)


@app.command(epilog=examples("overlay recover", "overlay recover --site-packages .venv/lib/python3.11/site-packages"))
def recover(python: Python = None, site_packages: SitePackages = None, json: Json = False) -> int:
    """Finish an interrupted install or revert.

    Every other command on the environment does this first, too.
    """
    from rocm_overlay.install import operations

    return output.outcome("recover", operations.recover_only(target_options(python, site_packages)), as_json=json)
