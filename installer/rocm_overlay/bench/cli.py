"""`overlay bench` and `overlay bench compare`: options only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rocm_overlay.commandline import App, Json, examples

app = App()
FailOver = Annotated[str, typer.Option("--fail-over", metavar="SHARE", help="Slower by more than this fails.")]

Metric = Annotated[
    str | None, typer.Option("--metric", metavar="A,B", help="Judge only these, e.g. prefill,per_token.")
]


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "overlay bench --model ./Llama-3.2-1B --matrix toggles --isl 128,2048 --batch 1,8",
        "overlay bench --model ./bert --mode forward",
        "overlay bench --model ./Llama-3.2-1B --baseline before/report.json",
    ),
)
# long: one option per line, nothing else
def bench(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option("--model", metavar="DIR", help="A saved model, or a folder with only config.json.")
    ] = None,
    matrix: Annotated[str, typer.Option("--matrix", help="onoff, toggles, tiers, or a YAML file of cells.")] = "onoff",
    mode: Annotated[str, typer.Option("--mode", help="generate, train or forward (encoders, vision).")] = "generate",
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes, e.g. 1,8,32.")] = "1",
    isl: Annotated[str, typer.Option("--isl", help="Input lengths in tokens, e.g. 128,2048.")] = "128",
    osl: Annotated[int, typer.Option("--osl", help="Output length in tokens.")] = 16,
    attn: Annotated[str, typer.Option("--attn", help="Attention implementation of transformers.")] = "sdpa",
    cache: Annotated[str, typer.Option("--cache", help="dynamic or static.")] = "dynamic",
    compile: Annotated[str, typer.Option("--compile", help="no, default or graph (reduce-overhead).")] = "no",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "bfloat16",
    rounds: Annotated[int, typer.Option("--rounds", help="Fresh processes per cell.")] = 5,
    runs: Annotated[int, typer.Option("--runs", help="Measured runs per process.")] = 3,
    warmup: Annotated[int, typer.Option("--warmup", help="Warm-up runs per process, after the cold first one.")] = 1,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds after which a process is ended.")] = 1800.0,
    python: Annotated[
        str | None, typer.Option("--python", metavar="PYTHON", help="Interpreter with torch and transformers.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder of the run.")] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page here.")] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="GFX:CUS", help="Also show tuned GEMM coverage for this GPU.")
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", help="process, or ray: shapes of work over the machines of a cluster.")
    ] = "process",
    workers: Annotated[
        int | None, typer.Option("--workers", help="With ray: how many machines or GPUs at most.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", metavar="FILE", help="An earlier report.json.")] = None,
    fail_over: FailOver = "5%",
    metric: Metric = None,
    json: Json = False,
) -> int:
    """Measure stock against overlaid code, in fresh interleaved processes."""
    if context.invoked_subcommand is not None:
        return 0
    from rocm_overlay.install.transaction.errors import UsageError

    from . import command

    if model is None:
        remedy = "name a folder with a config.json, as in `overlay bench --model ./Llama-3.2-1B`"
        raise UsageError("no-model", "--model is missing", remedy=remedy)
    return command.run(
        command.Options(
            model=model,
            matrix=matrix,
            mode=mode,
            batch=batch,
            isl=isl,
            osl=osl,
            attn=attn,
            cache=cache,
            compile=compile,
            dtype=dtype,
            rounds=rounds,
            runs=runs,
            warmup=warmup,
            timeout=timeout,
            python=python,
            output=output,
            html=html,
            gpu=gpu,
            baseline=baseline,
            fail_over=fail_over,
            metric=metric,
            as_json=json,
            executor=executor,
            workers=workers,
        )
    )


@app.command(epilog=examples("overlay bench compare before/report.json after/report.json --fail-over 5%"))
def compare(
    old: Annotated[Path, typer.Argument(metavar="A", help="A report.json.")],
    new: Annotated[Path, typer.Argument(metavar="B", help="The one to judge.")],
    fail_over: FailOver = "5%",
    metric: Metric = None,
    other_machine: Annotated[
        bool, typer.Option("--other-machine", help="Show reports of two machines; nothing fails then.")
    ] = False,
    json: Json = False,
) -> int:
    """Compare two reports of one machine.

    Exit 1 when B is slower than A allows.
    """
    from . import command

    return command.compare(old, new, fail_over, metric, other_machine, json)
