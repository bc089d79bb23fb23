"""`overlay tune`: thin commands over the functions of this package. Every heavy import is local to its command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rocm_overlay.epilog import examples

from .output import guarded

app = typer.Typer(
    name="tune",
    help="GEMM tuning tables: which a model needs, which it has, one safe file for aiter.",
    epilog=examples(
        "overlay tune report --model llama-3.1-8b --gpu MI300X", "overlay tune merge --user mine.csv -o table.csv"
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigOption = Annotated[
    str,
    typer.Option("--config", "--model", metavar="F", help="config.json, a model folder, or a bundled config's name"),
]
MaybeConfig = Annotated[
    str | None,
    typer.Option("--config", "--model", metavar="F", help="config.json, a model folder, or a bundled name"),
]
GpuOption = Annotated[
    str | None,
    typer.Option("--gpu", metavar="GFX:CU", help="gfx942:304, or a product name; default: this machine's"),
]
TpOption = Annotated[int, typer.Option("--tp", help="degree of tensor parallelism")]
FusedOption = Annotated[str, typer.Option("--fused", help="qkv,gate_up, one of them, or none")]
LadderOption = Annotated[
    str, typer.Option("--m-ladder", help="decode, prefill, full (1 to 4096), all, 1,2,4, or BATCHxLENGTH")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="bf16 or fp16")]
AssumeOption = Annotated[
    str | None, typer.Option("--assume", metavar="TYPE", help="read an unknown model type as this one")
]
TableOption = Annotated[list[Path] | None, typer.Option("--table", help="tuned tables; default: the installed aiter's")]
AiterOption = Annotated[
    Path | None, typer.Option("--aiter", metavar="DIR", help="aiter's package folder or a checkout")
]
VersionOption = Annotated[
    str | None, typer.Option("--aiter-version", help="write for this aiter instead of the installed one")
]
OutOption = Annotated[Path, typer.Option("-o", "--output", help="the file to write; never an input")]
MaybeOut = Annotated[Path | None, typer.Option("-o", "--output", help="the file to write; default: stdout")]
JsonOption = Annotated[bool, typer.Option("--json", help="one versioned object on stdout")]


@app.command(
    "shapes",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": False},
    epilog=examples(
        "overlay tune shapes --model llama-3.1-8b --fused qkv,gate_up -o untuned.csv",
        "overlay tune shapes --from-log server.log",
    ),
)
def shapes_command(
    context: typer.Context,
    config: MaybeConfig = None,
    tp: TpOption = 1,
    fused: FusedOption = "none",
    m_ladder: LadderOption = "full",
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    from_log: Annotated[Path | None, typer.Option("--from-log", help="a server log with aiter's table lines")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="run the command after -- and collect what it looks up")
    ] = False,
    hits: Annotated[bool, typer.Option("--hits", help="with a log: shapes that were found, too")] = False,
    output: MaybeOut = None,
    json_: JsonOption = False,
) -> None:
    """List the GEMM shapes of a model, a server log or a running command, in the tuner's untuned schema."""
    from . import commands

    def work() -> int:
        options = commands.ShapeOptions(config, tp, fused, m_ladder, dtype, assume)
        found = commands.find_shapes(options, from_log, list(context.args) if record else None, hits)
        return commands.show_shapes(found, output, json_)

    raise typer.Exit(guarded(work, json_))


@app.command(epilog=examples("overlay tune merge --user mine.csv -o table.csv --gpu gfx942:304"))
def merge(
    files: Annotated[list[Path] | None, typer.Argument(help="tuned tables; default: the installed aiter's")] = None,
    user: Annotated[
        list[Path] | None, typer.Option("--user", help="your own tables: their rows win, the last one first")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="the file to write; never an input")] = None,
    gpu: GpuOption = None,
    aiter: AiterOption = None,
    aiter_version: VersionOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="refuse everything when a single row is refused")] = False,
    json_: JsonOption = False,
) -> None:
    """Make one private table for one device: unique keys, gfx filled, user rows win, sources untouched."""
    from . import commands

    raise typer.Exit(
        guarded(
            lambda: commands.merge(files or [], user or [], output, gpu, aiter, aiter_version, strict, json_), json_
        )
    )


@app.command(epilog=examples("overlay tune check mine.csv --aiter-version 0.1.20"))
def check(
    files: Annotated[list[Path], typer.Argument(help="tuned tables")],
    aiter: AiterOption = None,
    aiter_version: VersionOption = None,
    err_ratio: Annotated[float, typer.Option("--err-ratio", help="highest share of wrong elements")] = 0.05,
    strict: Annotated[bool, typer.Option("--strict", help="warnings fail, too")] = False,
    json_: JsonOption = False,
) -> None:
    """Check tables: schema, types, duplicates, devices, kernels, times, errors. Exit 1 when something is wrong."""
    from . import commands

    raise typer.Exit(guarded(lambda: commands.check(files, aiter, aiter_version, err_ratio, strict, json_), json_))


@app.command(epilog=examples("overlay tune report --model llama-3.1-8b --gpu MI300X --table table.csv"))
def report(
    config: ConfigOption,
    gpu: GpuOption = None,
    fused: FusedOption = "qkv,gate_up",
    m_ladder: LadderOption = "full",
    m_mix: Annotated[
        str | None, typer.Option("--m-mix", help="values of M with their shares, for example 1:0.7,16:0.3")
    ] = None,
    tp: TpOption = 1,
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    table: TableOption = None,
    aiter: AiterOption = None,
    html: Annotated[Path | None, typer.Option("--html", help="write the heat map as one HTML file")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="write the heat map as a picture (matplotlib)")] = None,
    json_: JsonOption = False,
) -> None:
    """Say how many of a model's products are tuned for a GPU, as aiter looks them up, fused and not."""
    from . import commands

    def work() -> int:
        options = commands.ShapeOptions(config, tp, fused, m_ladder, dtype, assume)
        return commands.report(options, gpu, m_mix, table or [], aiter, html, png, json_)

    raise typer.Exit(guarded(work, json_))


@app.command(epilog=examples("overlay tune estimate --model llama-3.1-8b --gpu MI300X"))
def estimate(
    config: ConfigOption,
    gpu: Annotated[
        str, typer.Option("--gpu", help="gfx:CU or a product: MI300X, MI325X, MI308X, MI355X, H200")
    ] = "gfx942:304",
    hbm_tbs: Annotated[
        float | None, typer.Option("--hbm-tbs", help="memory bandwidth in TB/s instead of the product's")
    ] = None,
    context: Annotated[str, typer.Option("--context", help="cached tokens per sequence")] = "0,2048,8192,131072",
    batch: Annotated[int, typer.Option("--batch", help="sequences per decode step")] = 1,
    fused: FusedOption = "qkv,gate_up",
    tp: TpOption = 1,
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    efficiency: Annotated[float, typer.Option("--efficiency", help="share of peak that real kernels reach")] = 0.65,
    launch_us: Annotated[float, typer.Option("--launch-us", help="host time of one launch")] = 5.0,
    table: TableOption = None,
    aiter: AiterOption = None,
    json_: JsonOption = False,
) -> None:
    """Estimate decode from the memory roofline and from measured rows: tokens/s, us per layer, what bounds it."""
    from . import commands

    def work() -> int:
        options = commands.ShapeOptions(config, tp, fused, "1", dtype, assume)
        speed = commands.SpeedOptions(gpu, hbm_tbs, context, batch, efficiency, launch_us)
        return commands.estimate(options, speed, table or [], aiter, json_)

    raise typer.Exit(guarded(work, json_))


@app.command(epilog=examples("overlay tune diff old.csv new.csv --exit-code"))
def diff(
    old: Annotated[Path, typer.Argument(help="a tuned table")],
    new: Annotated[Path, typer.Argument(help="a tuned table")],
    gpu: GpuOption = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="exit 1 when they differ")] = False,
    json_: JsonOption = False,
) -> None:
    """Compare two tables shape by shape: added, removed, other kernel or time."""
    from . import commands

    raise typer.Exit(guarded(lambda: commands.diff(old, new, gpu, exit_code, json_), json_))


@app.command(epilog=examples("overlay tune prune mine.csv -o clean.csv"))
def prune(
    file: Annotated[Path, typer.Argument(help="a tuned table")],
    output: OutOption,
    gpu: GpuOption = None,
    all_devices: Annotated[bool, typer.Option("--all-devices", help="keep the rows of every device")] = False,
    config: MaybeConfig = None,
    tp: TpOption = 1,
    fused: FusedOption = "qkv,gate_up",
    m_ladder: LadderOption = "all",
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    unmeasured: Annotated[bool, typer.Option("--unmeasured", help="drop rows without a time")] = False,
    torch_winners: Annotated[bool, typer.Option("--torch-winners", help="drop rows that say torch")] = False,
    aiter: AiterOption = None,
    aiter_version: VersionOption = None,
    json_: JsonOption = False,
) -> None:
    """Write a copy without duplicates, other devices, unknown libraries, and what the options name."""
    from . import commands

    def work() -> int:
        shapes = commands.ShapeOptions(config, tp, fused, m_ladder, dtype, assume) if config else None
        drop = commands.PruneOptions(gpu, all_devices, unmeasured, torch_winners, aiter, aiter_version)
        return commands.prune(file, output, shapes, drop, json_)

    raise typer.Exit(guarded(work, json_))


@app.command(epilog=examples('eval "$(overlay tune env)"'))
def env(
    gpu: GpuOption = None,
    user: Annotated[
        list[Path] | None, typer.Option("--user", help="your own tables, besides those of the user folder")
    ] = None,
    aiter: AiterOption = None,
    aiter_version: VersionOption = None,
    json_: JsonOption = False,
) -> None:
    """Build or reuse the merged table of this user and print the line that makes aiter read it."""
    from . import commands

    raise typer.Exit(guarded(lambda: commands.env(gpu, user or [], aiter, aiter_version, json_), json_))


@app.command(epilog=examples("overlay tune run --model llama-3.1-8b --m-ladder decode -o mine.csv"))
def run(
    output: OutOption,
    config: MaybeConfig = None,
    shapes: Annotated[Path | None, typer.Option("--shapes", help="an untuned CSV; instead of --config")] = None,
    gpu: GpuOption = None,
    tp: TpOption = 1,
    fused: FusedOption = "qkv,gate_up",
    m_ladder: LadderOption = "decode",
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    work: Annotated[Path | None, typer.Option("--work", help="folder of the session; default: OUT.session")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="forget an earlier session")] = False,
    backend: Annotated[str, typer.Option("--backend", help="aiter or tunableop")] = "aiter",
    tuner: Annotated[
        str | None, typer.Option("--tuner", help="another program that takes -i, -o, --errRatio, --libtype")
    ] = None,
    tuner_option: Annotated[list[str] | None, typer.Option("--tuner-option", help="passed on to the tuner")] = None,
    verifier: Annotated[
        str | None, typer.Option("--verifier", help="another numeric check: ROW.csv VERDICT.json")
    ] = None,
    python: Annotated[str | None, typer.Option("--python", help="the interpreter with torch and aiter")] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="seconds per shape and program")] = 1800.0,
    retries: Annotated[int, typer.Option("--retries", help="how often a crashed shape is tried again")] = 1,
    margin: Annotated[float, typer.Option("--margin", help="percent of the default's time a row must save")] = 3.0,
    err_ratio: Annotated[float, typer.Option("--err-ratio", help="highest share of wrong elements")] = 0.05,
    ab: Annotated[
        str | None,
        typer.Option("--ab", metavar="COMMAND", help="end-to-end command, run with and without the table"),
    ] = None,
    ab_runs: Annotated[int, typer.Option("--ab-runs", help="runs on each side")] = 5,
    ab_metric: Annotated[
        str | None, typer.Option("--ab-metric", help="pattern of the number to compare; default: seconds")
    ] = None,
    ab_higher: Annotated[bool, typer.Option("--ab-higher", help="a higher number is better")] = False,
    verify_only: Annotated[
        Path | None, typer.Option("--verify-only", help="tune nothing: check the rows of this table")
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", help="process: this GPU; ray: the GPUs of a cluster")
    ] = "process",
    workers: Annotated[int | None, typer.Option("--workers", help="with ray: how many GPUs at most")] = None,
    aiter: AiterOption = None,
    json_: JsonOption = False,
) -> None:
    """Tune shape by shape on this device: resumable, only right rows that beat the default, then an A/B."""
    from .commands import ShapeOptions
    from .run import command

    def body() -> int:
        asked = command.Asked(ShapeOptions(config, tp, fused, m_ladder, dtype, assume), shapes)
        tools = command.Tools(backend, tuner, tuple(tuner_option or ()), verifier, python, timeout, err_ratio, aiter)
        limits = command.Limits(margin, retries, restart, executor, workers)
        ends = command.Ends(ab, ab_runs, ab_metric, ab_higher)
        if verify_only is not None:
            return command.verify(verify_only, gpu, tools, work or output.with_name(output.name + ".session"), json_)
        return command.run(asked, gpu, output, work, tools, limits, ends, json_)

    raise typer.Exit(guarded(body, json_))


@app.command("import-tunableop", epilog=examples("overlay tune import-tunableop tunableop_results0.csv -o mine.csv"))
def import_tunableop(
    file: Annotated[Path, typer.Argument(help="a result file that TunableOp wrote")],
    output: OutOption,
    gpu: GpuOption = None,
    json_: JsonOption = False,
) -> None:
    """Turn TunableOp results into rows of aiter's schema; hipBLASLt indices hold for the same hipBLASLt build only."""
    from . import commands

    raise typer.Exit(guarded(lambda: commands.import_tunableop(file, output, gpu, json_), json_))


@app.command("export-tunableop", epilog=examples("overlay tune export-tunableop untuned.csv -o tunableop_untuned0.csv"))
def export_tunableop(
    file: Annotated[Path, typer.Argument(help="an untuned CSV, or with --validators a tuned table")],
    output: OutOption,
    validators: Annotated[
        Path | None, typer.Option("--validators", help="a TunableOp result file of the target machine")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write shapes as TunableOp's untuned file, or hipblaslt and torch rows as a result file."""
    from . import commands

    raise typer.Exit(guarded(lambda: commands.export_tunableop(file, output, validators, json_), json_))
