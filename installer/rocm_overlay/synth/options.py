"""The options of `overlay synth` in groups, each written once. None: the default of `settings.Settings`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

Total = Annotated[int | None, Option(help="Operator combinations to fill; default 100.")]
Workers = Annotated[int | None, Option(help="Validation processes; default 2.")]
Output = Annotated[Path | None, Option(help="Default ./generated_programs.")]
Operators = Annotated[Path | None, Option(help="Operators of yours, as TOML.")]


@dataclass(frozen=True)
class Sampled:
    """What a program is made of."""

    num_core_ops_range: Annotated[str | None, Option(metavar="[LOW,HIGH]", help="Default [1,5].")] = None
    num_compound_ops_range: Annotated[str | None, Option(metavar="[LOW,HIGH]", help="Default [0,4].")] = None
    num_supporting_ops_range: Annotated[str | None, Option(metavar="[LOW,HIGH]", help="Default [2,10].")] = None
    p_value: Annotated[float | None, Option(help="0 to 1; smaller: more operators; default 0.25.")] = None
    seed: Annotated[int | None, Option(help="Default 0.")] = None


@dataclass(frozen=True)
class Written:
    """Who writes a program, from what, and how near it may come to a known problem."""

    model_name: Annotated[str | None, Option(help="offline, openai, gemini, local or a plugin; default offline.")] = (
        None
    )
    temperature: Annotated[float | None, Option(help="Of the language model; default 0.7.")] = None
    prompts: Annotated[str | None, Option(help="default, explore, one of yours, or a .toml file.")] = None
    prompts_dir: Annotated[Path | None, Option(help="A folder of prompts of yours.")] = None
    operators_file: Operators = None
    kernelbench_filter: Annotated[str | None, Option(help="off, exact or near; default near.")] = None
    kernelbench_threshold: Annotated[float | None, Option(help="Similarity from which near rejects; default 0.8.")] = (
        None
    )
    kernelbench_dir: Annotated[Path | None, Option(help="Your copy of KernelBench; default: signatures of ours.")] = (
        None
    )
    llm_model: Annotated[str | None, Option(help="The server's name of the model; default by provider.")] = None
    base_url: Annotated[str | None, Option(help="A compatible server: vLLM, llama.cpp, ...")] = None
    max_tokens: Annotated[int | None, Option(help="Per answer; default 4096.")] = None
    request_timeout: Annotated[float | None, Option(help="Seconds per request; default 120.")] = None


@dataclass(frozen=True)
class Confined:
    """What a program may use where it is judged."""

    validation_timeout: Annotated[float | None, Option(help="Seconds per program; default 60.")] = None
    memory_limit_mb: Annotated[int | None, Option(help="Of a program beyond torch; default 2048.")] = None


@dataclass(frozen=True)
class Compiled(Confined):
    """The same, with the compiler."""

    compile_backend: Annotated[str | None, Option(help="inductor, aot_eager, eager or none; default inductor.")] = None


@dataclass(frozen=True)
class Many:
    """A run of many programs."""

    num_total_samples: Total = None
    num_worker: Workers = None
    max_retries: Annotated[int | None, Option(help="Attempts per operator combination; default 3.")] = None
    output_dir: Output = None
    executor: Annotated[str | None, Option(help="process or ray; default process.")] = None
    requests_per_minute: Annotated[float | None, Option(help="0: no limit of ours.")] = None
    price_in: Annotated[float | None, Option(help="Per million input tokens, for the account.")] = None
    price_out: Annotated[float | None, Option(help="Per million output tokens.")] = None
