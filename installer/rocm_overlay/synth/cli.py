"""`overlay synth`: thin commands over the functions of this package. Every heavy import is local to its command."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from rocm_overlay.commandline import App, Json, examples

app = App(
    name="synth",
    help="Synthetic torch modules: generate them, validate them in isolation, fuzz this project with them.",
    epilog=examples("overlay synth single_debug", "overlay synth parallel num_total_samples=1000 num_worker=8"),
    no_args_is_help=True,
)
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)

Total = Annotated[int | None, typer.Option("--num-total-samples", help="Operator combinations to fill; default 100.")]
Workers = Annotated[int | None, typer.Option("--num-worker", help="Validation processes; default 2.")]
Model = Annotated[str | None, typer.Option("--model-name", help="offline, openai, gemini or local; default offline.")]
Core = Annotated[str | None, typer.Option("--num-core-ops-range", metavar="[LOW,HIGH]", help="Default [1,5].")]
Compound = Annotated[str | None, typer.Option("--num-compound-ops-range", metavar="[LOW,HIGH]", help="Default [0,4].")]
Supporting = Annotated[
    str | None, typer.Option("--num-supporting-ops-range", metavar="[LOW,HIGH]", help="Default [2,10].")
]
P = Annotated[float | None, typer.Option("--p-value", help="0 to 1; smaller: more operators; default 0.25.")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Of the language model; default 0.7.")]
Retries = Annotated[int | None, typer.Option("--max-retries", help="Attempts per operator combination; default 3.")]
Timeout = Annotated[float | None, typer.Option("--validation-timeout", help="Seconds per program; default 60.")]
Memory = Annotated[int | None, typer.Option("--memory-limit-mb", help="Of a program beyond torch; default 2048.")]
Output = Annotated[Path | None, typer.Option("--output-dir", help="Default ./generated_programs.")]
Backend = Annotated[
    str | None, typer.Option("--compile-backend", help="inductor, aot_eager, eager or none; default inductor.")
]
ExecutorName = Annotated[str | None, typer.Option("--executor", help="process or ray; default process.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Default 0.")]
Prompts = Annotated[str | None, typer.Option("--prompts", help="default, explore, or a .toml file.")]
LlmModel = Annotated[str | None, typer.Option("--llm-model", help="The server's name of the model.")]
BaseUrl = Annotated[str | None, typer.Option("--base-url", help="A compatible server: vLLM, llama.cpp, ...")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Per answer; default 4096.")]
RequestTimeout = Annotated[float | None, typer.Option("--request-timeout", help="Seconds per request; default 120.")]
PerMinute = Annotated[float | None, typer.Option("--requests-per-minute", help="0: no limit of ours.")]
PriceIn = Annotated[float | None, typer.Option("--price-in", help="Per million input tokens, for the account.")]
PriceOut = Annotated[float | None, typer.Option("--price-out", help="Per million output tokens.")]


@app.command("single_debug", epilog=examples("overlay synth single_debug seed=3 compile_backend=eager"))
def single_debug(
    model_name: Model = None,
    num_core_ops_range: Core = None,
    num_compound_ops_range: Compound = None,
    num_supporting_ops_range: Supporting = None,
    p_value: P = None,
    temperature: Temperature = None,
    validation_timeout: Timeout = None,
    memory_limit_mb: Memory = None,
    compile_backend: Backend = None,
    seed: Seed = None,
    prompts: Prompts = None,
    llm_model: LlmModel = None,
    base_url: BaseUrl = None,
    max_tokens: MaxTokens = None,
    request_timeout: RequestTimeout = None,
    json_: Json = False,
) -> int:
    """Make one program and show everything.

    The plan, the answer, each check. Exit 1 when it is not valid.
    """
    from . import commands, settings

    return commands.single_debug(settings.make(**locals()), as_json=json_)


@app.command(epilog=examples("overlay synth parallel num_total_samples=1000 num_worker=8 output_dir=programs"))
def parallel(
    num_total_samples: Total = None,
    num_worker: Workers = None,
    model_name: Model = None,
    num_core_ops_range: Core = None,
    num_compound_ops_range: Compound = None,
    num_supporting_ops_range: Supporting = None,
    p_value: P = None,
    temperature: Temperature = None,
    max_retries: Retries = None,
    validation_timeout: Timeout = None,
    memory_limit_mb: Memory = None,
    output_dir: Output = None,
    compile_backend: Backend = None,
    executor: ExecutorName = None,
    seed: Seed = None,
    prompts: Prompts = None,
    llm_model: LlmModel = None,
    base_url: BaseUrl = None,
    max_tokens: MaxTokens = None,
    request_timeout: RequestTimeout = None,
    requests_per_minute: PerMinute = None,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    json_: Json = False,
) -> int:
    """Make many programs, each of them validated.

    Run again with the same settings to go on where a run ended. Exit 1 when none is valid.
    """
    from . import commands, settings

    return commands.parallel(settings.make(**locals()), as_json=json_)


@app.command(epilog=examples("overlay synth validate generated_programs/ --num-worker 4"))
def validate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A program, or a folder of programs.")],
    num_worker: Workers = None,
    validation_timeout: Timeout = None,
    memory_limit_mb: Memory = None,
    compile_backend: Backend = None,
    json_: Json = False,
) -> int:
    """Validate programs that are there already.

    Each in a confined process. Exit 1 when one is not valid.
    """
    from . import commands, settings

    return commands.validate(path, settings.make(**locals()), as_json=json_)


@app.command(epilog=examples("overlay synth fuzz --target ops --num-total-samples 200"))
def fuzz(
    target: Annotated[str, typer.Option("--target", help="ops, kernelize, recipes or compile.")],
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="A folder of programs; default: freshly sampled ones.")
    ] = None,
    num_total_samples: Total = None,
    num_worker: Workers = None,
    num_core_ops_range: Core = None,
    num_compound_ops_range: Compound = None,
    num_supporting_ops_range: Supporting = None,
    p_value: P = None,
    validation_timeout: Timeout = None,
    memory_limit_mb: Memory = None,
    output_dir: Output = None,
    compile_backend: Backend = None,
    seed: Seed = None,
    json_: Json = False,
) -> int:
    """Run programs stock against replaced.

    What differs is shrunk and saved as a regression test. Exit 1 on a find.
    """
    from . import commands, settings

    chosen = {**locals(), "output_dir": output_dir or Path("fuzz_findings")}
    chosen["compile_backend"] = compile_backend or "aot_eager"
    return commands.fuzz(target, corpus, settings.make(**chosen), as_json=json_)


def run(arguments: Sequence[str], prog_name: str = "overlay synth") -> int:
    """Run `overlay synth` with these arguments, in either form, and return the exit status."""
    words = normalised(list(arguments)) or ["--help"]
    code = typer.main.get_command(app).main(words, prog_name=prog_name, standalone_mode=False)
    return code if isinstance(code, int) else 0


def normalised(arguments: list[str]) -> list[str]:
    """Turn the seed's form into options: ``.parallel num_worker=4`` means ``parallel --num-worker 4``.

    Raises:
        UsageError: ``name=value`` with a name that no command has.
    """
    from rocm_overlay.install.transaction.errors import UsageError

    from .settings import Settings

    known = {item.name for item in fields(Settings)} | {"target", "corpus"}
    words: list[str] = []
    for index, word in enumerate(arguments):
        found = _ASSIGNMENT.fullmatch(word)
        if index == 0 and word.startswith("."):
            words.append(word[1:])
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            words.append(name.replace("_", "-") + equals + value)
        elif found and index and (found[1] in known or not Path(word).exists()):
            if found[1] not in known:
                close = difflib.get_close_matches(found[1], known, 1)
                remedy = f"did you mean {close[0]}?" if close else "run `overlay synth parallel --help`"
                raise UsageError("bad-parameter", f"There is no parameter {found[1]}.", remedy=remedy)
            words += [f"--{found[1].replace('_', '-')}", found[2]]
        else:
            words.append(word)
    return words
