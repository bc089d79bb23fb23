"""`overlay tune`: thin commands over the functions of this package. Every heavy import is local to its command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..commandline import App, Gpu, examples
from .options import Aiter, AiterVersion, Drop, Ends, ErrRatio, Limits, Speed, Tools

app = App()
tune = App(
    help="Find, check, merge and measure tuned GEMM tables.\n\nWhat a model needs and has; one safe file for aiter.",
    epilog=examples(
        "overlay tune report --model llama-3.1-8b --gpu MI300X", "overlay tune merge --user mine.csv -o table.csv"
    ),
    no_args_is_help=True,
)
app.add_typer(tune, name="tune")

ConfigOption = Annotated[
    str,
    typer.Option("--config", "--model", metavar="F", help="config.json, a model folder, or a bundled config's name."),
]
MaybeConfig = Annotated[
    str | None,
    typer.Option("--config", "--model", metavar="F", help="config.json, a model folder, or a bundled name."),
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
OutOption = Annotated[Path, typer.Option("-o", "--output", help="The file to write; never an input.")]
MaybeOut = Annotated[Path | None, typer.Option("-o", "--output", help="The file to write; default: stdout.")]


@tune.command(
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
) -> int:
    """List the GEMM shapes of a model, a log or a command.

    They are written in the schema of the tuner's untuned files. With --record the command after -- is run.
    """
    from . import commands

    options = commands.ShapeOptions(config, tp, fused, m_ladder, dtype, assume)
    found = commands.find_shapes(options, from_log, list(context.args) if record else None, hits)
    return commands.show_shapes(found, output)


@tune.command(epilog=examples("overlay tune report --model llama-3.1-8b --gpu MI300X --table table.csv"))
def report(
    config: ConfigOption,
    gpu: Gpu = None,
    fused: FusedOption = "qkv,gate_up",
    m_ladder: LadderOption = "full",
    m_mix: Annotated[
        str | None, typer.Option("--m-mix", help="Values of M with their shares, for example 1:0.7,16:0.3.")
    ] = None,
    tp: TpOption = 1,
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    table: TableOption = None,
    aiter: Aiter = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the heat map as one HTML file.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write the heat map as a picture (matplotlib).")] = None,
) -> int:
    """Say how many of a model's products are tuned for a GPU.

    As aiter looks them up, fused and not.
    """
    from . import commands

    options = commands.ShapeOptions(config, tp, fused, m_ladder, dtype, assume)
    return commands.report(options, gpu, m_mix, table or [], aiter, html, png)


@tune.command(epilog=examples("overlay tune estimate --model llama-3.1-8b --gpu MI300X"))
def estimate(
    config: ConfigOption,
    speed: Speed,
    fused: FusedOption = "qkv,gate_up",
    tp: TpOption = 1,
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    table: TableOption = None,
    aiter: Aiter = None,
) -> int:
    """Estimate decode: tokens/s, us per layer, what bounds it.

    From the memory roofline and from measured rows.
    """
    from . import commands

    options = commands.ShapeOptions(config, tp, fused, "1", dtype, assume)
    return commands.estimate(options, speed, table or [], aiter)


@tune.command(epilog=examples("overlay tune run --model llama-3.1-8b --m-ladder decode -o mine.csv"))
def run(
    *,
    output: OutOption,
    config: MaybeConfig = None,
    shapes: Annotated[Path | None, typer.Option("--shapes", help="An untuned CSV; instead of --config.")] = None,
    gpu: Gpu = None,
    tp: TpOption = 1,
    fused: FusedOption = "qkv,gate_up",
    m_ladder: LadderOption = "decode",
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
    work: Annotated[Path | None, typer.Option("--work", help="Folder of the session; default: OUT.session.")] = None,
    verify_only: Annotated[
        Path | None, typer.Option("--verify-only", help="Tune nothing: check the rows of this table.")
    ] = None,
    tools: Tools,
    limits: Limits,
    ends: Ends,
) -> int:
    """Tune shape by shape on this device.

    Resumable; only right rows that beat the default are kept; then an A/B.
    """
    from .commands import ShapeOptions
    from .run import command

    asked = command.Asked(ShapeOptions(config, tp, fused, m_ladder, dtype, assume), shapes)
    if verify_only is not None:
        return command.verify(verify_only, gpu, tools, work or output.with_name(output.name + ".session"))
    return command.run(asked, gpu, output, work, tools, limits, ends)


@tune.command(epilog=examples("overlay tune check mine.csv --aiter-version 0.1.20"))
def check(
    files: Annotated[list[Path], typer.Argument(help="Tuned tables.")],
    aiter: Aiter = None,
    aiter_version: AiterVersion = None,
    err_ratio: ErrRatio = 0.05,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
) -> int:
    """Check tables; exit 1 when something is wrong.

    Schema, types, duplicates, devices, kernels, times, errors.
    """
    from . import commands

    return commands.check(files, aiter, aiter_version, err_ratio, strict)


@tune.command(epilog=examples("overlay tune merge --user mine.csv -o table.csv --gpu gfx942:304"))
def merge(
    files: Annotated[list[Path] | None, typer.Argument(help="Tuned tables; default: the installed aiter's.")] = None,
    user: Annotated[
        list[Path] | None, typer.Option("--user", help="Your own tables: their rows win, the last one first.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write; never an input.")] = None,
    gpu: Gpu = None,
    aiter: Aiter = None,
    aiter_version: AiterVersion = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse everything when a single row is refused.")] = False,
) -> int:
    """Make one private table for one device.

    Unique keys, gfx filled, user rows win, sources untouched.
    """
    from . import commands

    return commands.merge(files or [], user or [], output, gpu, aiter, aiter_version, strict)


@tune.command(epilog=examples('eval "$(overlay tune env)"'))
def env(
    gpu: Gpu = None,
    user: Annotated[
        list[Path] | None, typer.Option("--user", help="Your own tables, besides those of the user folder.")
    ] = None,
    aiter: Aiter = None,
    aiter_version: AiterVersion = None,
) -> int:
    """Print the line that makes aiter read your table.

    The merged table of this user is built, or reused.
    """
    from . import commands

    return commands.env(gpu, user or [], aiter, aiter_version)


@tune.command(epilog=examples("overlay tune diff old.csv new.csv --exit-code"))
def diff(
    old: Annotated[Path, typer.Argument(help="The earlier table.")],
    new: Annotated[Path, typer.Argument(help="The later one.")],
    gpu: Gpu = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 1 when they differ.")] = False,
) -> int:
    """Compare two tables shape by shape.

    Added, removed, other kernel or time.
    """
    from . import commands

    return commands.diff(old, new, gpu, exit_code)


@tune.command(epilog=examples("overlay tune prune mine.csv -o clean.csv"))
def prune(
    *,
    file: Annotated[Path, typer.Argument(help="A tuned table.")],
    output: OutOption,
    gpu: Gpu = None,
    drop: Drop,
    config: MaybeConfig = None,
    tp: TpOption = 1,
    fused: FusedOption = "qkv,gate_up",
    m_ladder: LadderOption = "all",
    dtype: DtypeOption = "bf16",
    assume: AssumeOption = None,
) -> int:
    """Write a copy of a table without rows of no use.

    Duplicates, other devices, unknown libraries, and what the options name.
    """
    from . import commands

    shapes = commands.ShapeOptions(config, tp, fused, m_ladder, dtype, assume) if config else None
    return commands.prune(file, output, shapes, gpu, drop)


@tune.command("import-tunableop", epilog=examples("overlay tune import-tunableop tunableop_results0.csv -o mine.csv"))
def import_tunableop(
    file: Annotated[Path, typer.Argument(help="A result file that TunableOp wrote.")],
    output: OutOption,
    gpu: Gpu = None,
) -> int:
    """Turn TunableOp results into rows of aiter's schema.

    hipBLASLt indices hold for the same hipBLASLt build only.
    """
    from . import commands

    return commands.import_tunableop(file, output, gpu)


@tune.command(
    "export-tunableop", epilog=examples("overlay tune export-tunableop untuned.csv -o tunableop_untuned0.csv")
)
def export_tunableop(
    file: Annotated[Path, typer.Argument(help="An untuned CSV, or with --validators a tuned table.")],
    output: OutOption,
    validators: Annotated[
        Path | None, typer.Option("--validators", help="A TunableOp result file of the target machine.")
    ] = None,
) -> int:
    """Write shapes as TunableOp's untuned file.

    Or, with --validators, hipblaslt and torch rows as a result file.
    """
    from . import commands

    return commands.export_tunableop(file, output, validators)
