"""Synthetic torch modules: `synth`, a program of its own."""

from __future__ import annotations

import typer

from rocm_overlay.commandline import App

app = App()


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def synth(context: typer.Context) -> int:
    """Generate and validate synthetic modules, and fuzz with them."""
    from rocm_overlay.synth import cli

    return cli.run(context.args)
