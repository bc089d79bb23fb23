"""What the command lines of all rooms share: the style of a program, and of a page of help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import ArgumentInfo

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object; everything else goes to stderr.")]


class _Command(TyperCommand):
    """A command whose arguments are explained: click 8.5 loses the text that typer 0.24 gives them."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        assert self.callback is not None
        hints = get_type_hints(self.callback, include_extras=True)
        for parameter in self.params:
            for info in getattr(hints.get(parameter.name or ""), "__metadata__", ()):
                if isinstance(info, ArgumentInfo):
                    parameter.help = info.help

    def format_arguments(self, ctx: Any, formatter: Any) -> None:
        """Write nothing: typer lists arguments with the options, where click 8.5 would list them once more."""


class App(typer.Typer):
    """A set of commands in the style of this program."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            add_completion=False,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
            **settings,
        )

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Register a command, as `typer.Typer.command` does."""
        return super().command(name, cls=_Command, **settings)


def examples(*lines: str) -> str:
    """Return the end of a help page: command lines that are not to be wrapped."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
