"""Options that several commands share, and what is read from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rocm_overlay.install.session import Options

Python = Annotated[
    str | None, typer.Option("--python", metavar="PYTHON", help="Interpreter of the environment to work on.")
]
SitePackages = Annotated[
    str | None,
    typer.Option("--site-packages", metavar="DIR", help="Folder that contains transformers/; needs no interpreter."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
Executor = Annotated[
    str, typer.Option("--executor", metavar="process|ray", help="Where the work runs: here, or on a Ray cluster.")
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="How many at once; default: 1 here, all of a cluster.")
]
Models = Annotated[str | None, typer.Option("--models", metavar="A,B", help="Only these models.")]


def names(text: str | None) -> list[str] | None:
    """Split a comma list; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def target_options(python: str | None, site_packages: str | None, dry_run: bool = False) -> Options:
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
