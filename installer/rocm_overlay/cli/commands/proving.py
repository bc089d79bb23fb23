"""What is right on this machine: `verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..options import Json, examples, new_app

app = new_app()


@app.command(
    epilog=examples("overlay verify --model ./Qwen3-0.6B", "overlay verify --model ./m --tiers torch,eager --json")
)
def verify(
    model: Annotated[str, typer.Option("--model", metavar="DIR", help="Folder of a saved model.")],
    python: Annotated[
        str | None, typer.Option("--python", metavar="PYTHON", help="Interpreter with torch and transformers.")
    ] = None,
    tiers: Annotated[str | None, typer.Option("--tiers", metavar="A,B", help="Tiers to try, e.g. torch,eager.")] = None,
    toggles: Annotated[
        list[str] | None, typer.Option("--toggles", metavar="SET", help="A set of toggles; repeat for more.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Greedy tokens to compare.")] = 8,
    json: Json = False,
) -> int:
    """Prove on this machine that overlaid code computes what stock does."""
    from rocm_overlay.verify import command

    return command.run(
        model,
        python=python,
        tiers=tiers,
        toggles=toggles,
        dtype=dtype,
        max_new_tokens=max_new_tokens,
        json_output=json,
    )
