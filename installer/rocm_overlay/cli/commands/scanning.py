"""Other people's code: `scan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rocm_overlay.commandline import App, Json, examples

app = App()


@app.command(
    epilog=examples(
        "overlay scan ./my-project",
        "overlay scan ./my-project --exclude 'third_party/*' --json",
        "overlay scan ./my-project --format sarif > scan.sarif",
    )
)
def scan(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file or folder.")],
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="Leave out paths below PATH that match; repeat for more."),
    ] = None,
    format_: Annotated[
        Literal["text", "json", "sarif"], typer.Option("--format", help="For people, programs or code scanning.")
    ] = "text",
    json: Json = False,
) -> int:
    """Find NVIDIA-only libraries in sources, and what replaces them.

    Exit 1 when something needs manual work, 0 when hipify or nothing is enough.
    """
    from rocm_overlay.install.scan.engine import scan as look_through
    from rocm_overlay.install.transaction.errors import UsageError

    from ..reports.scanning import progress, show

    if json and format_ == "sarif":
        raise UsageError("two-formats", "--json and --format sarif exclude each other.", remedy="leave one of them out")
    found = look_through(path, exclude or [], progress=progress)
    return show(found, "json" if json else format_)
