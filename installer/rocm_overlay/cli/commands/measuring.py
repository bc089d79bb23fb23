"""How fast it is: `bench`, a program of its own, and `profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rocm_overlay.commandline import App, Json, examples

app = App()


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def bench(context: typer.Context) -> int:
    """Measure stock against overlaid code, in interleaved processes."""
    from rocm_overlay.bench.cli import app as bench_app

    code = typer.main.get_command(bench_app).main(
        context.args or ["--help"], prog_name="overlay bench", standalone_mode=False
    )
    return code if isinstance(code, int) else 0


@app.command(epilog=examples("overlay profile --model ./Qwen3-0.6B --isl 512 -o traces"))
def profile(
    model: Annotated[str, typer.Option("--model", metavar="DIR", help="A saved model, or a folder with config.json.")],
    python: Annotated[
        str | None, typer.Option("--python", metavar="PYTHON", help="Interpreter with torch and transformers.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Batch size.")] = 1,
    isl: Annotated[int, typer.Option("--isl", help="Prompt length in tokens.")] = 128,
    attn: Annotated[str, typer.Option("--attn", help="Attention implementation of transformers.")] = "sdpa",
    cache: Annotated[str, typer.Option("--cache", help="dynamic or static.")] = "dynamic",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "bfloat16",
    folder: Annotated[Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder of the traces.")] = None,
    json: Json = False,
) -> int:
    """Trace a step of both builds: the share of time in ops of ours.

    One prefill and one decode step each, with the gaps between kernels.
    """
    from rocm_overlay.bench import command, profiling

    return profiling.run(
        command.Options(
            model=model,
            python=python,
            batch=str(batch),
            isl=str(isl),
            attn=attn,
            cache=cache,
            dtype=dtype,
            output=folder,
            as_json=json,
        )
    )
