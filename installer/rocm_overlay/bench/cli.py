"""`overlay bench`, `overlay bench compare` and `overlay profile`: options only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ..commandline import App, TorchPython
from .options import Attn, Cache, Dtype, FailOver, Metric, Options

app = App()
bench_app = App()
app.add_typer(bench_app, name="bench")


@bench_app.callback(
    "overlay bench --model ./Llama-3.2-1B --matrix toggles --isl 128,2048 --batch 1,8",
    "overlay bench --model ./bert --mode forward",
    "overlay bench --model ./Llama-3.2-1B --baseline before/report.json",
    invoke_without_command=True,
)
def bench(context: typer.Context, options: Options) -> int:
    """Measure stock against overlaid code, in interleaved processes."""
    if context.invoked_subcommand is not None:
        return 0
    from . import command

    return command.run(options)


@bench_app.command("overlay bench compare before.json after.json --max-slowdown 5%")
def compare(
    old: Annotated[Path, Argument(metavar="A", help="A report.json.")],
    new: Annotated[Path, Argument(metavar="B", help="The one to judge.")],
    fail_over: FailOver = "5%",
    metric: Metric = None,
    other_machine: Annotated[bool, Option(help="Show reports of two machines; nothing fails then.")] = False,
) -> int:
    """Compare two reports of one machine.

    Exit 1 when B is slower than A allows.
    """
    from . import command

    return command.compare(old, new, fail_over, metric, other_machine)


@app.command("overlay profile --model ./Qwen3-0.6B --isl 512 -o traces")
def profile(
    model: Annotated[str, Option(metavar="DIR", help="A saved model, or a folder with config.json.")],
    python: TorchPython = None,
    batch: Annotated[int, Option(help="Batch size.")] = 1,
    isl: Annotated[int, Option(help="Prompt length in tokens.")] = 128,
    attn: Attn = "sdpa",
    cache: Cache = "dynamic",
    dtype: Dtype = "bfloat16",
    runs: Annotated[int, Option(help="Steps of each phase, traced one by one.")] = 5,
    folder: Annotated[Path | None, Option("-o", "--output", metavar="DIR", help="Folder of the traces.")] = None,
) -> int:
    """Trace steps of both builds: the share of time in ops of ours.

    Prefill and decode steps, with what takes most time outside of our ops.
    """
    from . import profiling

    shape = Options(model, batch=str(batch), isl=str(isl), attn=attn, cache=cache, dtype=dtype)
    return profiling.run(replace(shape, python=python, runs=runs, output=folder))
