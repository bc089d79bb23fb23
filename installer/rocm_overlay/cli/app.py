"""The program: a table of contents, and the way from a command line to an exit code.

Only the module of the command that was asked for is imported, so that a new command never slows the others.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rocm_overlay import __version__
from rocm_overlay.commandline import App

from . import output, streams

# Sections in the order of use: (title, module of `cli.commands`, {command: one line}).
CONTENTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "Change an environment",
        "installing",
        {
            "install": "Replace modeling files of an installed transformers, atomically.",
            "revert": "Put every stock file back: bytes, mode, owner and time.",
            "recover": "Finish an interrupted install or revert.",
        },
    ),
    (
        "Look at an environment",
        "inspecting",
        {
            "status": "Show what is applied, and whether the files agree.",
            "diff": "Print the difference from stock to the present files.",
            "doctor": "Find what keeps an environment slow, broken or misleading.",
            "list": "List the releases and models that have overlays.",
        },
    ),
    (
        "Run without changing anything",
        "running",
        {
            "run": "Run a command with the overlays served by an import hook.",
            "env": "Print shell exports for a profile of run-time toggles.",
        },
    ),
    (
        "Prove",
        "proving",
        {
            "verify": "Prove here that overlaid code computes what stock does.",
            "qualify": "Try every tier on this GPU and keep what is right and faster.",
            "warmup": "Build and load every kernel of a profile, ahead of serving.",
        },
    ),
    (
        "Measure",
        "measuring",
        {
            "bench": "Measure stock against overlaid code, in interleaved processes.",
            "profile": "Trace a step of both builds: the share of time in ops of ours.",
        },
    ),
    (
        "Tune GEMM tables",
        "tuning",
        {"tune": "Find, check, merge and measure tuned GEMM tables."},
    ),
    (
        "Show others what was changed",
        "exporting",
        {
            "export": "Print the overlays as a patch for a source checkout.",
            "attest": "Print what is installed with hashes before and after.",
        },
    ),
    (
        "Generate overlays",
        "generating",
        {
            "gen": "Generate overlays from stock modeling files and the recipes.",
            "drift": "Show what another release does to the edited places.",
        },
    ),
    (
        "Synthesise modules",
        "synthesising",
        {"synth": "Generate and validate synthetic modules, and fuzz with them."},
    ),
    (
        "Port other code",
        "scanning",
        {"scan": "Find NVIDIA-only libraries in sources, and what replaces them."},
    ),
)
_MODULES = {name: module for _, module, commands in CONTENTS for name in commands}

# click's class for a wrong command line; typer re-exports only its subclass, and newer releases carry their own click.
_CommandLineError: type[Exception] = typer.BadParameter.__bases__[0]
_NOT_ONE_OF = re.compile(r"'(?P<found>[^']*)' is not (?:one of )?(?P<choices>'.*')")
_NO_COMMAND = re.compile(r"No such command '(?P<found>[^']*)'")


class _Contents(TyperGroup):
    """The commands by name, each loaded when it is used. The help page needs none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(f"{__package__}.commands.{_MODULES[cmd_name]}")
        return typer.main.get_group(module.app).commands[cmd_name]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, _MODULES)) + 2
        for title, _, commands in CONTENTS:
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])


app = App()
app.info.cls = _Contents
app.info.help = "Make an installed transformers run on AMD GPUs through AMD's kernels, and put every byte back."
app.info.epilog = (
    "\b\nExamples:\n  overlay install --transformers 4.57\n"
    '  overlay status --check && eval "$(overlay env --profile auto)"\n  overlay run -- python serve.py\n'
    "  overlay revert\n\nEach command explains itself: overlay install --help"
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"overlay {__version__}")
        raise typer.Exit


@app.callback()
def _overlay(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Run the program and return the exit code of its work, whether or not its report could be written."""
    command = _command(arguments)
    with streams.guarded() as stdout:
        code = _run(command, arguments)
        sys.stdout.flush()
        if stdout is not None and stdout.problem is not None:
            streams.unwritten(command, code, stdout.problem)
    return code


def _command(arguments: list[str]) -> str:
    return next((word for word in arguments if not word.startswith("-")), "overlay")


def _wants_json(arguments: list[str]) -> bool:
    """Tell whether our own answer shall be JSON; what comes after ``--`` belongs to another command."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in own


def _run(command: str, arguments: list[str]) -> int:
    """Run the program and return its exit code; every expected problem becomes one message."""
    from rocm_overlay.install.transaction.errors import BUG, USAGE, CancelledError, OverlayError, WriteError
    from rocm_overlay.install.transaction.signals import HardStop

    as_json = _wants_json(arguments)
    try:
        code = typer.main.get_command(app).main(arguments or ["--help"], prog_name="overlay", standalone_mode=False)
        if not arguments:
            return USAGE
        return code if isinstance(code, int) else 0
    except OverlayError as error:
        return output.failure(command, error, as_json=as_json)
    except _CommandLineError as error:
        return output.failure(command, _usage(command, error), as_json=as_json)
    except (KeyboardInterrupt, HardStop, typer.Abort):
        cancelled = CancelledError(
            "interrupted",
            "Stopped by a signal; an open transaction is finished by the next overlay command.",
            remedy="run `overlay status`",
        )
        return output.failure(command, cancelled, as_json=as_json)
    except OSError as error:
        problem = WriteError(
            "system",
            f"The system refused: {error}.",
            remedy="check permissions and space of the environment, then run `overlay status`",
            paths=[name for name in (error.filename, error.filename2) if name],
        )
        return output.failure(command, problem, as_json=as_json)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug gets its own exit code and its traceback
        output.bug(command, error, as_json=as_json)
        return BUG


def _usage(command: str, error: Exception) -> Any:
    """Turn click's complaint into ours, with the nearest value that would have been accepted."""
    from rocm_overlay.install.transaction.errors import UsageError

    message = error.format_message() if hasattr(error, "format_message") else str(error)
    match = _NOT_ONE_OF.search(message) or _NO_COMMAND.search(message)
    if match is not None:
        choices = re.findall(r"'([^']*)'", match.groupdict().get("choices") or "") or list(_MODULES)
        near = difflib.get_close_matches(match["found"].lower(), choices, n=1, cutoff=0.4)
        message += f" Did you mean {near[0]}?" if near else ""
    hint = f"run `overlay {command} --help`" if command in _MODULES else "run `overlay --help`"
    return UsageError("usage", message or "no command given", remedy=hint)
