"""The options of `overlay tune` that come in groups, each written once: as a field that knows its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Aiter = Annotated[Path | None, typer.Option("--aiter", metavar="DIR", help="aiter's package folder or a checkout.")]
AiterVersion = Annotated[
    str | None, typer.Option("--aiter-version", help="Write for this aiter instead of the installed one.")
]
ErrRatio = Annotated[float, typer.Option("--err-ratio", help="Highest share of wrong elements.")]


@dataclass(frozen=True)
class Tools:
    """What `tune run` starts."""

    backend: Annotated[str, typer.Option(help="aiter or tunableop.")] = "aiter"
    tuner: Annotated[str | None, typer.Option(help="Another program that takes -i, -o, --errRatio, --libtype.")] = None
    tuner_option: Annotated[list[str] | None, typer.Option(help="Passed on to the tuner.")] = None
    verifier: Annotated[str | None, typer.Option(help="Another numeric check: ROW.csv VERDICT.json.")] = None
    python: Annotated[str | None, typer.Option(help="The interpreter with torch and aiter.")] = None
    timeout: Annotated[float, typer.Option(help="Seconds per shape and program.")] = 1800.0
    err_ratio: ErrRatio = 0.05
    aiter: Aiter = None


@dataclass(frozen=True)
class Limits:
    """How `tune run` goes on."""

    margin: Annotated[float, typer.Option(help="Percent of the default's time a row must save.")] = 3.0
    retries: Annotated[int, typer.Option(help="How often a crashed shape is tried again.")] = 1
    fresh: Annotated[bool, typer.Option("--fresh", "--restart", help="Forget an earlier session.")] = False
    executor: Annotated[str, typer.Option(help="process: this GPU; ray: the GPUs of a cluster.")] = "process"
    workers: Annotated[int | None, typer.Option(help="With ray: how many GPUs at most.")] = None


@dataclass(frozen=True)
class Ends:
    """The end-to-end comparison of `tune run`."""

    ab: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="End-to-end command, run with and without the table.")
    ] = None
    ab_runs: Annotated[int, typer.Option(help="Runs with, without, and again without.")] = 5
    ab_metric: Annotated[str | None, typer.Option(help="Pattern of the number to compare; default: seconds.")] = None
    ab_higher: Annotated[bool, typer.Option("--ab-higher", help="A higher number is better.")] = False


@dataclass(frozen=True)
class Speed:
    """What `tune estimate` assumes of the machine and of the step."""

    gpu: Annotated[str, typer.Option(metavar="GPU", help="MI300X, MI325X, MI308X, MI355X, H200, or gfx942:304.")] = (
        "gfx942:304"
    )
    hbm_tbs: Annotated[float | None, typer.Option(help="Memory bandwidth in TB/s instead of the product's.")] = None
    context: Annotated[str, typer.Option(help="Cached tokens per sequence.")] = "0,2048,8192,131072"
    batch: Annotated[int, typer.Option(help="Sequences per decode step.")] = 1
    efficiency: Annotated[float, typer.Option(help="Share of peak that real kernels reach.")] = 0.65
    launch_us: Annotated[float, typer.Option(help="Host time of one launch.")] = 5.0


@dataclass(frozen=True)
class Drop:
    """Which rows `tune prune` leaves out."""

    all_devices: Annotated[bool, typer.Option("--all-devices", help="Keep the rows of every device.")] = False
    unmeasured: Annotated[bool, typer.Option("--unmeasured", help="Drop rows without a time.")] = False
    torch_winners: Annotated[bool, typer.Option("--torch-winners", help="Drop rows that say torch.")] = False
    aiter: Aiter = None
    aiter_version: AiterVersion = None
