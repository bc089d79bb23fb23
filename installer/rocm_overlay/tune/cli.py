"""`overlay tune`: thin commands over the functions of this package. Every heavy import is local to its command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ..commandline import App, Gpu
from .options import REQUIRED, Aiter, AiterVersion, Drop, Ends, ErrRatio, Limits, Model, Shapes, Speed, Tools

app = App()
tune = App(
    "overlay tune report --model llama-3.1-8b --gpu MI300X",
    "overlay tune merge --user mine.csv -o table.csv",
    help="Find, check, merge and measure tuned GEMM tables.\n\nWhat a model needs and has; one safe file for aiter.",
    no_args_is_help=True,
)
app.add_typer(tune, name="tune")

APART, LISTED = Shapes(fused="none"), Shapes(config=REQUIRED)
DECODE, ALL = Shapes(m_ladder="decode"), Shapes(m_ladder="all")
ONE = Model(config=REQUIRED)
TableOption = Annotated[list[Path] | None, Option("--table", help="Tuned tables; default: the installed aiter's.")]
OutOption = Annotated[Path, Option("-o", "--output", help="The file to write; never an input.")]
MaybeOut = Annotated[Path | None, Option("-o", "--output", help="The file to write; default: stdout.")]


@tune.command(
    "overlay tune shapes --model llama-3.1-8b --fused qkv,gate_up -o untuned.csv",
    "overlay tune shapes --from-log server.log",
    name="shapes",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": False},
)
def shapes_command(
    context: typer.Context,
    asked: Shapes = APART,
    from_log: Annotated[Path | None, Option(help="A server log with aiter's table lines.")] = None,
    record: Annotated[bool, Option(help="Run the command after -- and collect what it looks up.")] = False,
    hits: Annotated[bool, Option(help="With a log: shapes that were found, too.")] = False,
    output: MaybeOut = None,
) -> int:
    """List the GEMM shapes of a model, a log or a command.

    They are written in the schema of the tuner's untuned files. With --record the command after -- is run.
    """
    from . import commands

    found = commands.find_shapes(asked, from_log, list(context.args) if record else None, hits)
    return commands.show_shapes(found, output)


@tune.command("overlay tune report --model llama-3.1-8b --gpu MI300X --table table.csv")
def report(
    asked: Shapes = LISTED,
    gpu: Gpu = None,
    m_mix: Annotated[str | None, Option(help="Values of M with their shares, for example 1:0.7,16:0.3.")] = None,
    table: TableOption = None,
    aiter: Aiter = None,
    html: Annotated[Path | None, Option(help="Write the heat map as one HTML file.")] = None,
    png: Annotated[Path | None, Option(help="Write the heat map as a picture (matplotlib).")] = None,
) -> int:
    """Say how many of a model's products are tuned for a GPU.

    As aiter looks them up, fused and not.
    """
    from . import commands

    return commands.report(asked, gpu, m_mix, table or [], aiter, html, png)


@tune.command("overlay tune estimate --model llama-3.1-8b --gpu MI300X")
def estimate(*, asked: Model = ONE, speed: Speed, table: TableOption = None, aiter: Aiter = None) -> int:
    """Estimate decode: tokens/s, us per layer, what bounds it.

    From the memory roofline and from measured rows.
    """
    from . import commands

    return commands.estimate(asked, speed, table or [], aiter)


@tune.command("overlay tune run --model llama-3.1-8b --m-ladder decode -o mine.csv")
def run(
    *,
    output: OutOption,
    asked: Shapes = DECODE,
    shapes: Annotated[Path | None, Option(help="An untuned CSV; instead of --config.")] = None,
    gpu: Gpu = None,
    work: Annotated[Path | None, Option(help="Folder of the session; default: OUT.session.")] = None,
    verify_only: Annotated[Path | None, Option(help="Tune nothing: check the rows of this table.")] = None,
    tools: Tools,
    limits: Limits,
    ends: Ends,
) -> int:
    """Tune shape by shape on this device.

    Resumable; only right rows that beat the default are kept; then an A/B.
    """
    from .run import command

    if verify_only is not None:
        return command.verify(verify_only, gpu, tools, work or output.with_name(output.name + ".session"))
    return command.run(asked, shapes, gpu, output, work, tools, limits, ends)


@tune.command("overlay tune check mine.csv --aiter-version 0.1.20")
def check(
    files: Annotated[list[Path], Argument(help="Tuned tables.")],
    aiter: Aiter = None,
    aiter_version: AiterVersion = None,
    err_ratio: ErrRatio = 0.05,
    strict: Annotated[bool, Option(help="Warnings fail, too.")] = False,
) -> int:
    """Check tables; exit 1 when something is wrong.

    Schema, types, duplicates, devices, kernels, times, errors.
    """
    from . import commands

    return commands.check(files, aiter, aiter_version, err_ratio, strict)


@tune.command("overlay tune merge --user mine.csv -o table.csv --gpu gfx942:304")
def merge(
    files: Annotated[list[Path] | None, Argument(help="Tuned tables; default: the installed aiter's.")] = None,
    user: Annotated[list[Path] | None, Option(help="Your own tables: their rows win, the last one first.")] = None,
    output: Annotated[Path | None, Option("-o", "--output", help="The file to write; never an input.")] = None,
    gpu: Gpu = None,
    aiter: Aiter = None,
    aiter_version: AiterVersion = None,
    strict: Annotated[bool, Option(help="Refuse everything when a single row is refused.")] = False,
) -> int:
    """Make one private table for one device.

    Unique keys, gfx filled, user rows win, sources untouched.
    """
    from . import commands

    return commands.merge(files or [], user or [], output, gpu, aiter, aiter_version, strict)


@tune.command('eval "$(overlay tune env)"')
def env(
    gpu: Gpu = None,
    user: Annotated[list[Path] | None, Option(help="Your own tables, besides those of the user folder.")] = None,
    aiter: Aiter = None,
    aiter_version: AiterVersion = None,
) -> int:
    """Print the line that makes aiter read your table.

    The merged table of this user is built, or reused.
    """
    from . import commands

    return commands.env(gpu, user or [], aiter, aiter_version)


@tune.command("overlay tune diff old.csv new.csv --exit-code")
def diff(
    old: Annotated[Path, Argument(help="The earlier table.")],
    new: Annotated[Path, Argument(help="The later one.")],
    gpu: Gpu = None,
    exit_code: Annotated[bool, Option(help="Exit 1 when they differ.")] = False,
) -> int:
    """Compare two tables shape by shape.

    Added, removed, other kernel or time.
    """
    from . import commands

    return commands.diff(old, new, gpu, exit_code)


@tune.command("overlay tune prune mine.csv -o clean.csv")
def prune(
    *,
    file: Annotated[Path, Argument(help="A tuned table.")],
    output: OutOption,
    gpu: Gpu = None,
    drop: Drop,
    asked: Shapes = ALL,
) -> int:
    """Write a copy of a table without rows of no use.

    Duplicates, other devices, unknown libraries, and what the options name.
    """
    from . import commands

    return commands.prune(file, output, asked if asked.config else None, gpu, drop)


@tune.command("overlay tune import-tunableop tunableop_results0.csv -o mine.csv", name="import-tunableop")
def import_tunableop(
    file: Annotated[Path, Argument(help="A result file that TunableOp wrote.")], output: OutOption, gpu: Gpu = None
) -> int:
    """Turn TunableOp results into rows of aiter's schema.

    hipBLASLt indices hold for the same hipBLASLt build only.
    """
    from . import commands

    return commands.import_tunableop(file, output, gpu)


@tune.command("overlay tune export-tunableop untuned.csv -o tunableop_untuned0.csv", name="export-tunableop")
def export_tunableop(
    file: Annotated[Path, Argument(help="An untuned CSV, or with --validators a tuned table.")],
    output: OutOption,
    validators: Annotated[Path | None, Option(help="A TunableOp result file of the target machine.")] = None,
) -> int:
    """Write shapes as TunableOp's untuned file.

    Or, with --validators, hipblaslt and torch rows as a result file.
    """
    from . import commands

    return commands.export_tunableop(file, output, validators)
