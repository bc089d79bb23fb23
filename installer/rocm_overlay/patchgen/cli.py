"""Overlays from stock sources: `gen` and `drift`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..commandline import App, Models, names
from .options import Options

app = App()


@app.command(
    "overlay gen llama --diff",
    "overlay gen --all --from-installed -o my-overlays",
    "overlay gen --all --source ./transformers -o my-overlays --check",
)
def gen(options: Options) -> int:
    """Generate overlays from stock modeling files and the recipes.

    Sites that the nearest known release has and this one has not are listed; exit 1 then, without --allow-loss.

    Patch configs (*_patch_gen_config.py) are generated from, too.
    """
    from . import command

    return command.run(options)


@app.command(
    "overlay drift 4.57.6 5.23.0 --models llama,qwen3",
    "overlay drift old/transformers new/transformers",
    "overlay drift transformers-4.57.3-py3-none-any.whl transformers-4.57.6-py3-none-any.whl --html drift.html",
)
def drift(
    old: Annotated[str, Argument(metavar="A", help="A release of ours, or a transformers folder or wheel.")],
    new: Annotated[str, Argument(metavar="B", help="The one to move to.")],
    models: Models = None,
    html: Annotated[Path | None, Option(metavar="FILE", help="Also write a page.")] = None,
) -> int:
    """Show what another release does to the edited places.

    Exit 0: the same; 1: to be generated anew; 2: a site is lost, or does less than before.
    """
    from .drift import command

    return command.run(old, new, models=names(models) or (), html=html)
