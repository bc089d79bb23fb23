"""What needs no change of an environment: `run` and `env`."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from rocm_overlay.commandline import App, Json, examples

from ..options import Models, Python, names

app = App()


@app.command(
    epilog=examples(
        "overlay run -- python serve.py",
        "overlay run --profile auto -- torchrun --nproc-per-node 8 train.py",
        "overlay run --models llama --dry-run --json -- python serve.py",
    )
)
def run(
    command: Annotated[list[str], typer.Argument(metavar="-- CMD ...", help="The command to run, after --.")],
    models: Models = None,
    profile: Annotated[
        Literal["off", "auto", "max"] | None, typer.Option("--profile", help="Also set these toggles for CMD.")
    ] = None,
    python: Python = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be served; start nothing.")] = False,
    json: Json = False,
) -> int:
    """Run a command with the overlays served by an import hook.

    Nothing is written. Subprocesses and torchrun ranks inherit the hook. Python's -I, -E and -S switch it off.
    """
    from rocm_overlay.install.hook import running

    from ..reports import running as report

    started = running.prepare(command, names(models), python=python, profile=profile, as_json=json, dry_run=dry_run)
    if dry_run:
        return report.planned(started, as_json=json)
    sys.stdout.flush()
    return running.replace_process(started)


@app.command(
    epilog=examples(
        'eval "$(overlay env --profile auto)"', "overlay env --profile max --gpu gfx942", "overlay env --json"
    )
)
def env(
    profile: Annotated[
        Literal["off", "auto", "max"], typer.Option("--profile", help="off: stock; auto: by GPU; max: everything on.")
    ] = "auto",
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="GFX", help="For this GPU instead of the one of this machine.")
    ] = None,
    json: Json = False,
) -> int:
    """Print shell exports for a profile of run-time toggles."""
    from rocm_overlay.install import profiles

    from ..reports import running as report

    return report.environment(profiles.make(profile, gpu), as_json=json)
