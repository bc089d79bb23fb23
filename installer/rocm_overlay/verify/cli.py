"""What is right on this machine: `verify`, `qualify` and `warmup`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ..commandline import App, TorchPython
from ..errors import UsageError
from .options import Options, QualifyOptions

app = App()


@app.command(
    "overlay verify --model ./Qwen3-0.6B",
    "overlay verify --model ./Qwen3-0.6B/config.json --tiers torch,eager --json",
    "overlay verify --model ./Qwen3-0.6B --executor ray --work verify-qwen3",
    "overlay verify --hf-tests transformers-4.57.6.tar.gz --models llama",
)
def verify(options: Options) -> int:
    """Prove here that overlaid code computes what stock does."""
    if (options.model is None) == (options.hf_tests is None):
        raise UsageError("usage", "pass either --model or --hf-tests", remedy="run `overlay verify --help`")
    if options.hf_tests is not None:
        from .hf_tests import command as hf_command

        return hf_command.run(options.hf_tests, options)
    from . import command

    return command.run(options)


@app.command("overlay qualify --model ./Qwen3-0.6B -o profile.json")
def qualify(options: QualifyOptions) -> int:
    """Try every tier on this GPU and keep what is right and faster.

    What was kept for a model is written to a profile.
    """
    from .qualify import command

    return command.run(options)


@app.command("overlay warmup --profile profile.json")
def warmup(
    profile: Annotated[Path, Option(metavar="FILE", help="A profile of `overlay qualify`.")] = Path("profile.json"),
    python: TorchPython = None,
) -> int:
    """Build and load every kernel of a profile, ahead of serving.

    Every first call is triggered and timed.
    """
    from .qualify import command

    return command.warmup(profile, python=python)
