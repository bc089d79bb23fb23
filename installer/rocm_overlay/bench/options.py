"""The options of `overlay bench` and `overlay profile`, each written once: as a field that knows its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from ..commandline import TorchPython

Attn = Annotated[str, Option(help="Attention implementation of transformers.")]
Cache = Annotated[str, Option(help="dynamic or static.")]
Dtype = Annotated[str, Option(help="float32, bfloat16 or float16.")]
FailOver = Annotated[
    str, Option("--max-slowdown", "--fail-over", metavar="SHARE", help="Exit 1 where it is slower by more, e.g. 5%.")
]
Metric = Annotated[str | None, Option(metavar="A,B", help="Judge only these, e.g. prefill,per_token.")]


@dataclass(frozen=True)
class Options:
    """The options of `overlay bench`, as typed."""

    model: Annotated[str | None, Option(metavar="DIR", help="A saved model, or a folder with only config.json.")] = None
    matrix: Annotated[str, Option(help="onoff, toggles, tiers, or a YAML file of cells.")] = "onoff"
    mode: Annotated[str, Option(help="generate, train or forward (encoders, vision).")] = "generate"
    batch: Annotated[str, Option(help="Batch sizes, e.g. 1,8,32.")] = "1"
    isl: Annotated[str, Option(help="Input lengths in tokens, e.g. 128,2048.")] = "128"
    osl: Annotated[int, Option(help="Output length in tokens.")] = 16
    attn: Attn = "sdpa"
    cache: Cache = "dynamic"
    compile: Annotated[str, Option(help="no, default or graph (reduce-overhead).")] = "no"
    dtype: Dtype = "bfloat16"
    rounds: Annotated[int, Option(help="Fresh processes per cell.")] = 5
    runs: Annotated[int, Option(help="Measured runs per process.")] = 3
    warmup: Annotated[int, Option(help="Warm-up runs per process, after the cold first one.")] = 1
    timeout: Annotated[float, Option(help="Seconds after which a process is ended.")] = 1800.0
    python: TorchPython = None
    output: Annotated[Path | None, Option("-o", "--output", metavar="DIR", help="Folder of the run.")] = None
    html: Annotated[Path | None, Option(metavar="FILE", help="Write the page here.")] = None
    gpu: Annotated[
        str | None, Option(metavar="GPU", help="Also show tuned GEMM coverage for MI300X or gfx942:304.")
    ] = None
    executor: Annotated[str, Option(help="process, or ray: shapes of work over the machines of a cluster.")] = "process"
    workers: Annotated[int | None, Option(help="With ray: how many machines or GPUs at most.")] = None
    baseline: Annotated[Path | None, Option(metavar="FILE", help="An earlier report.json.")] = None
    fail_over: FailOver = "5%"
    metric: Metric = None
    fresh: Annotated[bool, Option(help="Measure again what the folder holds already.")] = False
