"""GEMM tables: `tune`, a program of its own."""

from __future__ import annotations

import typer

from rocm_overlay.commandline import App

app = App()


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def tune(context: typer.Context) -> int:
    """Find, check, merge and measure tuned GEMM tables."""
    # A program of its own, loaded only here: its commands must not slow the start of the others.
    from rocm_overlay.tune.cli import app as tune_app

    code = typer.main.get_command(tune_app).main(
        context.args or ["--help"], prog_name="overlay tune", standalone_mode=False
    )
    return code if isinstance(code, int) else 0
