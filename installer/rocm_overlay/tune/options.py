"""The options of `overlay tune` that come in groups, each written once: as a field that knows its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

REQUIRED: Any = ...  # typer's word for the default of an option that must be given

Aiter = Annotated[Path | None, Option("--aiter", metavar="DIR", help="aiter's package folder or a checkout.")]
AiterVersion = Annotated[
    str | None, Option("--aiter-version", help="Write for this aiter instead of the installed one.")
]
ErrRatio = Annotated[float, Option("--err-ratio", help="Highest share of wrong elements.")]


@dataclass(frozen=True)
class Model:
    """Which model, and how it is split."""

    config: Annotated[
        str | None, Option("--config", "--model", metavar="F", help="config.json, a model folder, or a bundled name.")
    ] = None
    tp: Annotated[int, Option(help="Degree of tensor parallelism.")] = 1
    fused: Annotated[str, Option(help="qkv,gate_up, one of them, or none.")] = "qkv,gate_up"
    dtype: Annotated[str, Option(help="bf16 or fp16.")] = "bf16"
    assume: Annotated[str | None, Option(metavar="TYPE", help="Read an unknown model type as this one.")] = None


@dataclass(frozen=True)
class Shapes(Model):
    """Which of its products."""

    m_ladder: Annotated[str, Option(help="decode, prefill, full (1 to 4096), all, 1,2,4, or BATCHxLENGTH.")] = "full"


@dataclass(frozen=True)
class Tools:
    """What `tune run` starts."""

    backend: Annotated[str, Option(help="aiter or tunableop.")] = "aiter"
    tuner: Annotated[str | None, Option(help="Another program that takes -i, -o, --errRatio, --libtype.")] = None
    tuner_option: Annotated[list[str] | None, Option(help="Passed on to the tuner.")] = None
    verifier: Annotated[str | None, Option(help="Another numeric check: ROW.csv VERDICT.json.")] = None
    python: Annotated[str | None, Option(help="The interpreter with torch and aiter.")] = None
    timeout: Annotated[float, Option(help="Seconds per shape and program.")] = 1800.0
    err_ratio: ErrRatio = 0.05
    aiter: Aiter = None


@dataclass(frozen=True)
class Limits:
    """How `tune run` goes on."""

    margin: Annotated[float, Option(help="Percent of the default's time a row must save.")] = 3.0
    retries: Annotated[int, Option(help="How often a crashed shape is tried again.")] = 1
    fresh: Annotated[bool, Option("--fresh", "--restart", help="Forget an earlier session.")] = False
    executor: Annotated[str, Option(help="process: this GPU; ray: the GPUs of a cluster.")] = "process"
    workers: Annotated[int | None, Option(help="With ray: how many GPUs at most.")] = None


@dataclass(frozen=True)
class Ends:
    """The end-to-end comparison of `tune run`."""

    ab: Annotated[str | None, Option(metavar="COMMAND", help="End-to-end command, run with and without the table.")] = (
        None
    )
    ab_runs: Annotated[int, Option(help="Runs with, without, and again without.")] = 5
    ab_metric: Annotated[str | None, Option(help="Pattern of the number to compare; default: seconds.")] = None
    ab_higher: Annotated[bool, Option(help="A higher number is better.")] = False


@dataclass(frozen=True)
class Speed:
    """What `tune estimate` assumes of the machine and of the step."""

    gpu: Annotated[str, Option(metavar="GPU", help="MI300X, MI325X, MI308X, MI355X, H200, or gfx942:304.")] = (
        "gfx942:304"
    )
    hbm_tbs: Annotated[float | None, Option(help="Memory bandwidth in TB/s instead of the product's.")] = None
    context: Annotated[str, Option(help="Cached tokens per sequence.")] = "0,2048,8192,131072"
    batch: Annotated[int, Option(help="Sequences per decode step.")] = 1
    efficiency: Annotated[float, Option(help="Share of peak that real kernels reach.")] = 0.65
    launch_us: Annotated[float, Option(help="Host time of one launch.")] = 5.0


@dataclass(frozen=True)
class Drop:
    """Which rows `tune prune` leaves out."""

    all_devices: Annotated[bool, Option(help="Keep the rows of every device.")] = False
    unmeasured: Annotated[bool, Option(help="Drop rows without a time.")] = False
    torch_winners: Annotated[bool, Option(help="Drop rows that say torch.")] = False
    aiter: Aiter = None
    aiter_version: AiterVersion = None
