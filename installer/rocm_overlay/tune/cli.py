"""`overlay tune`: thin commands over the functions of this package. Every heavy import is local to its command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rocm_overlay.commandline import App, Json, examples

from .output import guarded

app = App(
    name="tune",
    help="GEMM tuning tables: which a model needs, which it has, one safe file for aiter.",
    epilog=examples(
        "overlay tune report --model llama-3.1-8b --gpu MI300X", "overlay tune merge --user mine.csv -o table.csv"
    ),
    no_args_is_help=True,
)

ConfigOption = Annotated[
    str,
    typer.Option("--config", "--model", metavar="F", help="config.json, a model folder, or a bundled config's name."),
]
MaybeConfig = Annotated[
    str | None,
    typer.Option("--config", "--model", metavar="F", help="config.json, a model folder, or a bundled name."),
]
GpuOption = Annotated[
    str | None,
    typer.Option("--gpu", metavar="GFX:CU", help="gfx942:304, or a product name; default: this machine's."),
]
TpOption = Annotated[int, typer.Option("--tp", help="Degree of tensor parallelism.")]
FusedOption = Annotated[str, typer.Option("--fused", help="qkv,gate_up, one of them, or none.")]
LadderOption = Annotated[
    str, typer.Option("--m-ladder", help="decode, prefill, full (1 to 4096), all, 1,2,4, or BATCHxLENGTH.")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="bf16 or fp16.")]
AssumeOption = Annotated[
    str | None, typer.Option("--assume", metavar="TYPE", help="Read an unknown model type as this one.")
]
TableOption = Annotated[
    list[Path] | None, typer.Option("--table", help="Tuned tables; default: the installed aiter's.")
]
AiterOption = Annotated[
    Path | None, typer.Option("--aiter", metavar="DIR", help="aiter's package folder or a checkout.")
]
VersionOption = Annotated[
    str | None, typer.Option("--aiter-version", help="Write for this aiter instead of the installed one.")
]
OutOption = Annotated[Path, typer.Option("-o", "--output", help="The file to write; never an input.")]
MaybeOut = Annotated[Path | None, typer.Option("-o", "--output", help="The file to write; default: stdout.")]


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
    from_log: Annotated[Path | None, typer.Option("--from-log", help="A server log with aiter's table lines.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Run the command after -- and collect what it looks up.")
    ] = False,
    hits: Annotated[bool, typer.Option("--hits", help="With a log: shapes that were found, too.")] = False,
    output: MaybeOut = None,
    json_: Json = False,
) -> None:
    """List the GEMM shapes of a model, a log or a command.

    They are written in the schema of the tuner's untuned files. With --record the command after -- is run.
    """
    from . import commands

    def work() -> int:
        options = commands.ShapeOptions(config, tp, fused, m_ladder, dtype, assume)
        found = commands.find_shapes(options, from_log, list(context.args) if record else None, hits)
        return commands.show_shapes(found, output, json_)

    raise typer.Exit(guarded(work, json_))


@app.command(epilog=examples("overlay tune report --model llama-3.1-8b --gpu MI300X --table table.csv"))
def report(
    config: ConfigOption,
    gpu: GpuOption = None,
    fused: FusedOption = "qkv,gate_up",
    m_ladder: LadderOption = "full",
    m_mix: Annotated[
        str | None, typer.Option("--m-mix", help="Values of M with their shares, for example 1:0.7,16:0.3.")
    ] = None,
    tp: TpOption = 1,
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    table: TableOption = None,
    aiter: AiterOption = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the heat map as one HTML file.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write the heat map as a picture (matplotlib).")] = None,
    json_: Json = False,
) -> None:
    """Say how many of a model's products are tuned for a GPU.

    As aiter looks them up, fused and not.
    """
    from . import commands

    def work() -> int:
        options = commands.ShapeOptions(config, tp, fused, m_ladder, dtype, assume)
        return commands.report(options, gpu, m_mix, table or [], aiter, html, png, json_)

    raise typer.Exit(guarded(work, json_))


@app.command(epilog=examples("overlay tune estimate --model llama-3.1-8b --gpu MI300X"))
def estimate(
    config: ConfigOption,
    gpu: Annotated[
        str, typer.Option("--gpu", help="gfx:CU or a product: MI300X, MI325X, MI308X, MI355X, H200.")
    ] = "gfx942:304",
    hbm_tbs: Annotated[
        float | None, typer.Option("--hbm-tbs", help="Memory bandwidth in TB/s instead of the product's.")
    ] = None,
    context: Annotated[str, typer.Option("--context", help="Cached tokens per sequence.")] = "0,2048,8192,131072",
    batch: Annotated[int, typer.Option("--batch", help="Sequences per decode step.")] = 1,
    fused: FusedOption = "qkv,gate_up",
    tp: TpOption = 1,
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    efficiency: Annotated[float, typer.Option("--efficiency", help="Share of peak that real kernels reach.")] = 0.65,
    launch_us: Annotated[float, typer.Option("--launch-us", help="Host time of one launch.")] = 5.0,
    table: TableOption = None,
    aiter: AiterOption = None,
    json_: Json = False,
) -> None:
    """Estimate decode: tokens/s, us per layer, what bounds it.

    From the memory roofline and from measured rows.
    """
    from . import commands

    def work() -> int:
        options = commands.ShapeOptions(config, tp, fused, "1", dtype, assume)
        speed = commands.SpeedOptions(gpu, hbm_tbs, context, batch, efficiency, launch_us)
        return commands.estimate(options, speed, table or [], aiter, json_)

    raise typer.Exit(guarded(work, json_))


@app.command(epilog=examples("overlay tune run --model llama-3.1-8b --m-ladder decode -o mine.csv"))
# long: one option per line, nothing else
def run(
    output: OutOption,
    config: MaybeConfig = None,
    shapes: Annotated[Path | None, typer.Option("--shapes", help="An untuned CSV; instead of --config.")] = None,
    gpu: GpuOption = None,
    tp: TpOption = 1,
    fused: FusedOption = "qkv,gate_up",
    m_ladder: LadderOption = "decode",
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    work: Annotated[Path | None, typer.Option("--work", help="Folder of the session; default: OUT.session.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier session.")] = False,
    backend: Annotated[str, typer.Option("--backend", help="aiter or tunableop.")] = "aiter",
    tuner: Annotated[
        str | None, typer.Option("--tuner", help="Another program that takes -i, -o, --errRatio, --libtype.")
    ] = None,
    tuner_option: Annotated[list[str] | None, typer.Option("--tuner-option", help="Passed on to the tuner.")] = None,
    verifier: Annotated[
        str | None, typer.Option("--verifier", help="Another numeric check: ROW.csv VERDICT.json.")
    ] = None,
    python: Annotated[str | None, typer.Option("--python", help="The interpreter with torch and aiter.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds per shape and program.")] = 1800.0,
    retries: Annotated[int, typer.Option("--retries", help="How often a crashed shape is tried again.")] = 1,
    margin: Annotated[float, typer.Option("--margin", help="Percent of the default's time a row must save.")] = 3.0,
    err_ratio: Annotated[float, typer.Option("--err-ratio", help="Highest share of wrong elements.")] = 0.05,
    ab: Annotated[
        str | None,
        typer.Option("--ab", metavar="COMMAND", help="End-to-end command, run with and without the table."),
    ] = None,
    ab_runs: Annotated[int, typer.Option("--ab-runs", help="Runs on each side.")] = 5,
    ab_metric: Annotated[
        str | None, typer.Option("--ab-metric", help="Pattern of the number to compare; default: seconds.")
    ] = None,
    ab_higher: Annotated[bool, typer.Option("--ab-higher", help="A higher number is better.")] = False,
    verify_only: Annotated[
        Path | None, typer.Option("--verify-only", help="Tune nothing: check the rows of this table.")
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", help="process: this GPU; ray: the GPUs of a cluster.")
    ] = "process",
    workers: Annotated[int | None, typer.Option("--workers", help="With ray: how many GPUs at most.")] = None,
    aiter: AiterOption = None,
    json_: Json = False,
) -> None:
    """Tune shape by shape on this device.

    Resumable; only right rows that beat the default are kept; then an A/B.
    """
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


@app.command(epilog=examples("overlay tune check mine.csv --aiter-version 0.1.20"))
def check(
    files: Annotated[list[Path], typer.Argument(help="Tuned tables.")],
    aiter: AiterOption = None,
    aiter_version: VersionOption = None,
    err_ratio: Annotated[float, typer.Option("--err-ratio", help="Highest share of wrong elements.")] = 0.05,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
    json_: Json = False,
) -> None:
    """Check tables; exit 1 when something is wrong.

    Schema, types, duplicates, devices, kernels, times, errors.
    """
    from . import commands

    raise typer.Exit(guarded(lambda: commands.check(files, aiter, aiter_version, err_ratio, strict, json_), json_))


@app.command(epilog=examples("overlay tune merge --user mine.csv -o table.csv --gpu gfx942:304"))
def merge(
    files: Annotated[list[Path] | None, typer.Argument(help="Tuned tables; default: the installed aiter's.")] = None,
    user: Annotated[
        list[Path] | None, typer.Option("--user", help="Your own tables: their rows win, the last one first.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write; never an input.")] = None,
    gpu: GpuOption = None,
    aiter: AiterOption = None,
    aiter_version: VersionOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse everything when a single row is refused.")] = False,
    json_: Json = False,
) -> None:
    """Make one private table for one device.

    Unique keys, gfx filled, user rows win, sources untouched.
    """
    from . import commands

    raise typer.Exit(
        guarded(
            lambda: commands.merge(files or [], user or [], output, gpu, aiter, aiter_version, strict, json_), json_
        )
    )


@app.command(epilog=examples('eval "$(overlay tune env)"'))
def env(
    gpu: GpuOption = None,
    user: Annotated[
        list[Path] | None, typer.Option("--user", help="Your own tables, besides those of the user folder.")
    ] = None,
    aiter: AiterOption = None,
    aiter_version: VersionOption = None,
    json_: Json = False,
) -> None:
    """Print the line that makes aiter read your table.

    The merged table of this user is built, or reused.
    """
    from . import commands

    raise typer.Exit(guarded(lambda: commands.env(gpu, user or [], aiter, aiter_version, json_), json_))


@app.command(epilog=examples("overlay tune diff old.csv new.csv --exit-code"))
def diff(
    old: Annotated[Path, typer.Argument(help="The earlier table.")],
    new: Annotated[Path, typer.Argument(help="The later one.")],
    gpu: GpuOption = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 when they differ.")] = False,
    json_: Json = False,
) -> None:
    """Compare two tables shape by shape.

    Added, removed, other kernel or time.
    """
    from . import commands

    raise typer.Exit(guarded(lambda: commands.diff(old, new, gpu, exit_code, json_), json_))


@app.command(epilog=examples("overlay tune prune mine.csv -o clean.csv"))
def prune(
    file: Annotated[Path, typer.Argument(help="A tuned table.")],
    output: OutOption,
    gpu: GpuOption = None,
    all_devices: Annotated[bool, typer.Option("--all-devices", help="Keep the rows of every device.")] = False,
    config: MaybeConfig = None,
    tp: TpOption = 1,
    fused: FusedOption = "qkv,gate_up",
    m_ladder: LadderOption = "all",
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    unmeasured: Annotated[bool, typer.Option("--unmeasured", help="Drop rows without a time.")] = False,
    torch_winners: Annotated[bool, typer.Option("--torch-winners", help="Drop rows that say torch.")] = False,
    aiter: AiterOption = None,
    aiter_version: VersionOption = None,
    json_: Json = False,
) -> None:
    """Write a copy of a table without rows of no use.

    Duplicates, other devices, unknown libraries, and what the options name.
    """
    from . import commands

    def work() -> int:
        shapes = commands.ShapeOptions(config, tp, fused, m_ladder, dtype, assume) if config else None
        drop = commands.PruneOptions(gpu, all_devices, unmeasured, torch_winners, aiter, aiter_version)
        return commands.prune(file, output, shapes, drop, json_)

    raise typer.Exit(guarded(work, json_))


@app.command("import-tunableop", epilog=examples("overlay tune import-tunableop tunableop_results0.csv -o mine.csv"))
def import_tunableop(
    file: Annotated[Path, typer.Argument(help="A result file that TunableOp wrote.")],
    output: OutOption,
    gpu: GpuOption = None,
    json_: Json = False,
) -> None:
    """Turn TunableOp results into rows of aiter's schema.

    hipBLASLt indices hold for the same hipBLASLt build only.
    """
    from . import commands

    raise typer.Exit(guarded(lambda: commands.import_tunableop(file, output, gpu, json_), json_))


@app.command("export-tunableop", epilog=examples("overlay tune export-tunableop untuned.csv -o tunableop_untuned0.csv"))
def export_tunableop(
    file: Annotated[Path, typer.Argument(help="An untuned CSV, or with --validators a tuned table.")],
    output: OutOption,
    validators: Annotated[
        Path | None, typer.Option("--validators", help="A TunableOp result file of the target machine.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write shapes as TunableOp's untuned file.

    Or, with --validators, hipblaslt and torch rows as a result file.
    """
    from . import commands

    raise typer.Exit(guarded(lambda: commands.export_tunableop(file, output, validators, json_), json_))
