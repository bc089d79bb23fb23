"""The options of `overlay verify` and `overlay qualify`, each written once: as a field that knows its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from ..commandline import Executor, TorchPython, Workers


@dataclass(frozen=True)
class Options:
    """The options of `overlay verify`, as typed."""

    model: Annotated[str | None, Option(metavar="DIR_OR_CONFIG", help="A saved model, or a config.json alone.")] = None
    python: TorchPython = None
    tiers: Annotated[str | None, Option(metavar="A,B", help="Tiers to try, e.g. torch,eager.")] = None
    toggles: Annotated[list[str] | None, Option(metavar="SET", help="A set of toggles; repeat for more.")] = None
    cases: Annotated[str | None, Option(metavar="A,B", help="quick, default, all, or names of cases.")] = None
    dtype: Annotated[str, Option(help="float32, bfloat16, float16, or several.")] = "float32"
    max_new_tokens: Annotated[int, Option(help="Greedy tokens to compare.")] = 8
    save: Annotated[Path | None, Option(metavar="FILE", help="Keep stock's outputs for another machine.")] = None
    compare: Annotated[Path | None, Option(metavar="FILE", help="Compare with outputs saved elsewhere.")] = None
    hf_tests: Annotated[Path | None, Option(metavar="SDIST", help="Run transformers' own model tests instead.")] = None
    models: Annotated[str | None, Option(metavar="A,B", help="With --hf-tests: only these models.")] = None
    executor: Executor = "process"
    workers: Workers = None
    work: Annotated[Path | None, Option(metavar="DIR", help="Keep finished tiers here; go on where one stopped.")] = (
        None
    )
    fresh: Annotated[bool, Option(help="Run again what --work holds already.")] = False
    json_file: Annotated[Path | None, Option(metavar="FILE", help="Append the JSON report to a file, too.")] = None


@dataclass(frozen=True)
class QualifyOptions:
    """The options of `overlay qualify`, as typed."""

    model: Annotated[Path, Option(metavar="DIR", help="A saved model, or a config.json alone.")]
    output: Annotated[Path, Option("-o", "--output", metavar="FILE", help="Where the profile goes.")] = Path(
        "profile.json"
    )
    python: TorchPython = None
    dtype: Annotated[str, Option(help="float32, bfloat16 or float16.")] = "bfloat16"
    max_capture: Annotated[float, Option(metavar="GIB", help="Cap of captured data.")] = 4.0
    time_limit: Annotated[float, Option(metavar="S", help="Stop a candidate after S silent seconds.")] = 60.0
    build_limit: Annotated[float, Option(metavar="S", help="For first calls.")] = 1200.0
    dry_run: Annotated[bool, Option(help="Show supply, demand and plan; run nothing.")] = False
    register: Annotated[
        bool, Option("--register/--no-register", help="Leave the profile where AMD_OPS=auto looks, too.")
    ] = True
    fresh: Annotated[bool, Option(help="Qualify again, and use no earlier result.")] = False
    inputs: Annotated[Path | None, Option(metavar="FILE", help="A forward's arguments, as safetensors.")] = None
