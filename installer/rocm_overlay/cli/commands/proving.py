"""What is right on this machine: `verify`, `qualify` and `warmup`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rocm_overlay.commandline import App, Json, examples

from ..options import Executor, Workers

app = App()
Python = Annotated[
    str | None, typer.Option("--python", metavar="PYTHON", help="Interpreter with torch and transformers.")
]


@app.command(
    epilog=examples(
        "overlay verify --model ./Qwen3-0.6B",
        "overlay verify --model ./Qwen3-0.6B/config.json --tiers torch,eager --json",
        "overlay verify --model ./Qwen3-0.6B --executor ray --work verify-qwen3",
        "overlay verify --hf-tests transformers-4.57.6.tar.gz --models llama",
    )
)
def verify(
    model: Annotated[
        str | None, typer.Option("--model", metavar="DIR_OR_CONFIG", help="A saved model, or a config.json alone.")
    ] = None,
    python: Python = None,
    tiers: Annotated[str | None, typer.Option("--tiers", metavar="A,B", help="Tiers to try, e.g. torch,eager.")] = None,
    toggles: Annotated[
        list[str] | None, typer.Option("--toggles", metavar="SET", help="A set of toggles; repeat for more.")
    ] = None,
    cases: Annotated[
        str | None, typer.Option("--cases", metavar="A,B", help="quick, default, all, or names of cases.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16, or several.")] = "float32",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Greedy tokens to compare.")] = 8,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Keep stock's outputs for another machine.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="FILE", help="Compare with outputs saved elsewhere.")
    ] = None,
    hf_tests: Annotated[
        Path | None, typer.Option("--hf-tests", metavar="SDIST", help="Run transformers' own model tests instead.")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", metavar="A,B", help="With --hf-tests: only these models.")
    ] = None,
    executor: Executor = "process",
    workers: Workers = None,
    work: Annotated[
        Path | None, typer.Option("--work", metavar="DIR", help="Keep finished tiers here; go on where one stopped.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json-file", metavar="FILE", help="Append the JSON report to a file, too.")
    ] = None,
    json: Json = False,
) -> int:
    """Prove here that overlaid code computes what stock does."""
    from rocm_overlay.install.transaction.errors import UsageError

    if (model is None) == (hf_tests is None):
        raise UsageError("usage", "pass either --model or --hf-tests", remedy="run `overlay verify --help`")
    if hf_tests is not None:
        from rocm_overlay.verify.hf_tests import command as hf_command

        return hf_command.run(hf_tests, models=models, toggles=toggles, python=python, json_output=json)
    from rocm_overlay.verify import command

    assert model is not None
    return command.run(
        model, python=python, tiers=tiers, toggles=toggles, cases=cases, dtype=dtype, max_new_tokens=max_new_tokens,
        save=save, compare=compare, json_file=json_file, json_output=json,
        executor=executor, workers=workers, work=work,
    )  # fmt: skip


@app.command(epilog=examples("overlay qualify --model ./Qwen3-0.6B -o profile.json"))
def qualify(
    model: Annotated[Path, typer.Option("--model", metavar="DIR", help="A saved model, or a config.json alone.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where the profile goes.")] = Path(
        "profile.json"
    ),
    python: Python = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "bfloat16",
    max_capture: Annotated[float, typer.Option("--max-capture", metavar="GIB", help="Cap of captured data.")] = 4.0,
    time_limit: Annotated[float, typer.Option("--time-limit", metavar="S", help="A silent candidate has hung.")] = 60.0,
    build_limit: Annotated[float, typer.Option("--build-limit", metavar="S", help="For first calls.")] = 1200.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show supply, demand and plan; run nothing.")] = False,
    register: Annotated[
        bool, typer.Option("--register/--no-register", help="Leave the profile where AMD_OPS=auto looks, too.")
    ] = True,
    json: Json = False,
) -> int:
    """Try every tier on this GPU and keep what is right and faster.

    What was kept for a model is written to a profile.
    """
    from rocm_overlay.verify.qualify.command import Options, run

    return run(Options(model, output, python, dtype, max_capture, time_limit, build_limit, dry_run, register, json))


@app.command(epilog=examples("overlay warmup --profile profile.json"))
def warmup(
    profile: Annotated[Path, typer.Option("--profile", metavar="FILE", help="A profile of `overlay qualify`.")] = Path(
        "profile.json"
    ),
    python: Python = None,
    json: Json = False,
) -> int:
    """Build and load every kernel of a profile, ahead of serving.

    Every first call is triggered and timed.
    """
    from rocm_overlay.verify.qualify import command

    return command.warmup(profile, python=python, json_output=json)
