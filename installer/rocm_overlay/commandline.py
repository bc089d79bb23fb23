"""What the command lines of all rooms share: their style, the options that several have, and what is read from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer import Option
from typer.core import TyperCommand, TyperGroup
from typer.models import ArgumentInfo

from . import console
from .errors import UsageError

if TYPE_CHECKING:
    from .install.session import Options


Python = Annotated[str | None, Option(metavar="PYTHON", help="Interpreter of the environment to work on.")]
SitePackages = Annotated[
    str | None, Option(metavar="DIR", help="Folder that contains transformers/; needs no interpreter.")
]
TorchPython = Annotated[str | None, Option(metavar="PYTHON", help="Interpreter with torch and transformers.")]
DryRun = Annotated[bool, Option(help="Say what would be done; write nothing.")]
Executor = Annotated[str, Option(metavar="process|ray", help="Where the work runs: here, or on a Ray cluster.")]
Workers = Annotated[int | None, Option(metavar="N", help="How many at once; default: 1 here, all of a cluster.")]


@dataclass(frozen=True)
class Where:
    """The environment that a command works on."""

    python: Python = None
    site_packages: SitePackages = None

    def options(self, dry_run: bool = False) -> Options:
        """Return it as the rooms take it. An empty text is an unset shell variable, not the folder "."."""
        from .install.session import Options

        for option, value, example in (
            ("--python", self.python, ".venv/bin/python"),
            ("--site-packages", self.site_packages, ".venv/lib/python3.11/site-packages"),
        ):
            if value is not None and not value.strip():
                raise UsageError(
                    "empty-option",
                    f"{option} was given an empty text, expected a path such as {example}.",
                    remedy=f"pass a path, or leave {option} out for the active environment",
                )
        return Options(self.python, None if self.site_packages is None else Path(self.site_packages), dry_run)


def complete_models(incomplete: str) -> list[str]:
    """Complete the last name of a comma list of models."""
    from .install import catalog

    done, comma, begun = incomplete.rpartition(",")
    known = {model for line in catalog.lines() for model in catalog.load(line).models()}
    return [f"{done}{comma}{model}" for model in sorted(known) if model.startswith(begun)]


def complete_release(incomplete: str) -> list[str]:
    """Complete a release line, or a release."""
    from .install import catalog

    known = [name for line in catalog.lines() for name in (line, *catalog.load(line).releases)]
    return [name for name in known if name.startswith(incomplete)]


def _gpus(incomplete: str) -> list[str]:
    from .install.gpu import PRODUCTS

    return [name for name in PRODUCTS if name.lower().startswith(incomplete.lower())]


Models = Annotated[str | None, Option(metavar="A,B", help="Only these models.", autocompletion=complete_models)]


Gpu = Annotated[
    str | None,
    Option(metavar="GPU", help="MI300X, gfx942 or gfx942:304; default: the one of this machine.", autocompletion=_gpus),
]


def _switch(*flags: str, help: str, does: Callable[[], None]) -> Any:
    """Return a switch that takes effect wherever it stands."""
    return Option(*flags, help=help, callback=lambda wanted: does() if wanted else None)


_JSON = _switch(
    "--json", help="Print one JSON object; everything else goes to stderr.", does=lambda: console.set_json(True)
)
_QUIET = _switch(
    "-q",
    "--quiet",
    help="Print errors only, and what was asked for as data.",
    does=lambda: console.set_level(console.QUIET),
)
_VERBOSE = _switch("-v", "--verbose", help="Print details.", does=lambda: console.set_level(console.VERBOSE))


@lru_cache
def _levels() -> list[Any]:
    """Return the options that every command has, as this release of typer makes them."""
    holder = typer.Typer(add_completion=False)

    @holder.command()
    def levels(
        json: Annotated[bool, _JSON] = False,
        quiet: Annotated[bool, _QUIET] = False,
        verbose: Annotated[bool, _VERBOSE] = False,
    ) -> None:
        pass

    made = [one for one in typer.main.get_command(holder).params if one.name in ("json", "quiet", "verbose")]
    for one in made:
        one.expose_value = False
    return made


def _with_levels(parameters: list[Any], *without: str) -> None:
    """Give a command --json, -q and -v, unless it has such options of its own."""
    taken = {*without, *(name for parameter in parameters for name in parameter.opts)}
    parameters += [one for one in _levels() if taken.isdisjoint(one.opts)]
    for one in parameters:
        _check_what_was_given(one)


def _check_what_was_given(parameter: Any) -> Any:
    """Leave alone what needs no check: newer typer imports pydantic for it, which takes longer than `status`."""
    checks = getattr(parameter, "get_runtime_param", None)
    if checks is None:
        return parameter

    def coerce(value: Any, param: Any, ctx: Any) -> Any:
        text = isinstance(value, str) and param.type_descriptor.annotation is str
        several = param.multiple or param.nargs == -1
        if not several and (value is None or text or value is param.default):
            return value
        return () if value is None else checks().coerce(value, param=param, ctx=ctx)

    parameter.get_runtime_param = lambda: SimpleNamespace(coerce=coerce)
    return parameter


class _Page:
    """The help page, which ends in command lines; they are continued in the way of shells where they are too wide."""

    epilog: str | None

    def get_help_option(self, ctx: Any) -> Any:
        """Return --help, which is an option that needs no check, either."""
        return _check_what_was_given(super().get_help_option(ctx))  # type: ignore[misc]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the lines of `examples` as they are meant to be typed."""
        if self.epilog:
            formatter.write_paragraph()
            for line in self.epilog.removeprefix("\b\n").splitlines():
                indent = line[: len(line) - len(line.lstrip())]
                parts = console.fold(line.strip(), formatter.width - len(indent) - 2, "", "  ") if line else [""]
                formatter.write(f" \\\n{indent}".join([indent + parts[0], *parts[1:]]) + "\n")


class _Command(_Page, TyperCommand):
    """A command whose arguments are explained: click 8.5 loses the text that typer 0.24 gives them."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        assert self.callback is not None
        hints = get_type_hints(self.callback, include_extras=True)
        for parameter in self.params:
            for info in getattr(hints.get(parameter.name or ""), "__metadata__", ()):
                if isinstance(info, ArgumentInfo):
                    parameter.help = info.help
        _with_levels(self.params)

    def format_arguments(self, ctx: Any, formatter: Any) -> None:
        """Write nothing: typer lists arguments with the options, where click 8.5 would list them once more."""


class Group(_Page, TyperGroup):
    """Commands below a command, which can also run by itself."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _with_levels(self.params, *(() if self.invoke_without_command else ("--json",)))


class App(typer.Typer):
    """A set of commands in the style of this program. A help page ends in the command lines that are named first."""

    def __init__(self, *examples: str, **settings: Any) -> None:
        super().__init__(
            add_completion=False,
            rich_markup_mode=None,
            cls=settings.pop("cls", Group),
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
            **_with_examples(settings, examples),
        )

    def command(  # type: ignore[override]
        self, *examples: str, name: str | None = None, **settings: Any
    ) -> Callable[[Any], Any]:
        """Register a command, as `typer.Typer.command` does, whose parameters may be groups of options."""
        register = super().command(name, cls=_Command, **_with_examples(settings, examples))
        return lambda work: register(by_option(work))

    def callback(self, *examples: str, **settings: Any) -> Callable[[Any], Any]:
        """Register what runs before the commands below, in the same way."""
        register = super().callback(**_with_examples(settings, examples))
        return lambda work: register(by_option(work))


def _with_examples(settings: dict[str, Any], lines: Sequence[str]) -> dict[str, Any]:
    """Add the end of a help page: command lines that are not to be wrapped."""
    return {**settings, "epilog": "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)} if lines else settings


def by_option(work: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``work`` with one parameter per option: each dataclass that it takes is replaced by its fields.

    So an option is written once, as a field that knows its help and its default; its flag is its name. A command
    whose defaults are others gives its parameter an instance that has them.
    """
    hints = get_type_hints(work, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if name != "return" and is_dataclass(kind)}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(work).parameters.items():
        if name not in groups:
            options.append(_option(name, hints[name], parameter.default))
            continue
        types = get_type_hints(groups[name], include_extras=True)
        for one in fields(groups[name]):
            default = parameter.empty if one.default is MISSING else one.default
            options.append(_option(one.name, types[one.name], getattr(parameter.default, one.name, default)))

    @wraps(work)
    def command(**given: Any) -> Any:
        made = {name: kind(**{one.name: given.pop(one.name) for one in fields(kind)}) for name, kind in groups.items()}
        return work(**made, **given)

    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in options}
    return command


def _option(name: str, kind: Any, default: Any) -> inspect.Parameter:
    """Return a parameter for typer. A switch gets its name as its only flag: typer would add a ``--no-`` to it."""
    value, *about = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if value is bool and about and about[0].default is ...:  # which is where typer keeps the first flag
        about[0] = copy(about[0])
        about[0].param_decls = (f"--{name.replace('_', '-')}",)
        kind = Annotated[bool, about[0]]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def names(text: str | None) -> list[str] | None:
    """Split a comma list; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
