"""The program: a table of contents, and the way from a command line to an exit code.

Only the module of the command that was asked for is imported, so that a new command never slows the others.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Annotated, Any, Literal

import typer

from rocm_overlay import __version__

from . import console
from .commandline import App, Group
from .errors import INTERRUPTED, CancelledError, OverlayError, UsageError, WriteError, alike

# Sections in the order of use: {(title, room): {command: one line}}.
CONTENTS = {
    ("Change an environment", "install"): {
        "install": "Replace modeling files of an installed transformers, atomically.",
        "revert": "Put every stock file back: bytes, mode, owner and time.",
        "recover": "Finish an interrupted install or revert.",
    },
    ("Look at an environment", "install"): {
        "status": "Show what is applied, and whether the files agree.",
        "diff": "Print the difference from stock to the present files.",
        "doctor": "Find what keeps an environment slow, broken or misleading.",
        "info": "Print what a bug report needs: versions, GPU, toggles, state.",
        "list": "List the releases and models that have overlays.",
    },
    ("Run without changing anything", "install"): {
        "run": "Run a command with the overlays served by an import hook.",
        "env": "Print shell exports for a profile of run-time toggles.",
    },
    ("Prove", "verify"): {
        "verify": "Prove here that overlaid code computes what stock does.",
        "qualify": "Try every tier on this GPU and keep what is right and faster.",
        "warmup": "Build and load every kernel of a profile, ahead of serving.",
    },
    ("Measure", "bench"): {
        "bench": "Measure stock against overlaid code, in interleaved processes.",
        "profile": "Trace steps of both builds: the share of time in ops of ours.",
    },
    ("Tune GEMM tables", "tune"): {"tune": "Find, check, merge and measure tuned GEMM tables."},
    ("Show others what was changed", "install"): {
        "export": "Print the overlays as a patch for a source checkout.",
        "attest": "Print what is installed with hashes before and after.",
    },
    ("Generate overlays", "patchgen"): {
        "gen": "Generate overlays from stock modeling files and the recipes.",
        "drift": "Show what another release does to the edited places.",
    },
    ("Synthesise modules", "synth"): {
        "synth": "Generate and validate synthetic modules, and fuzz with them.",
    },
    ("Port other code", "install"): {"scan": "Find NVIDIA-only libraries in sources, and what replaces them."},
}
_MODULES = {name: room for (_, room), commands in CONTENTS.items() for name in commands}

# click's class for a wrong command line; typer re-exports only its subclass, and newer releases carry their own click.
_CommandLineError: type[Exception] = typer.BadParameter.__bases__[0]
# Libraries of the extras: {import name: what pip installs}.
_EXTRAS = {name: name for name in ("libcst", "numpy", "safetensors", "jinja2", "matplotlib")} | {"yaml": "pyyaml"}
_COMPLETE = "_OVERLAY_COMPLETE"
_NOT_ONE_OF = re.compile(r"'(?P<found>[^']*)' is not (?:one of )?(?P<choices>'.*')")
_NO_COMMAND = re.compile(r"No such command '(?P<found>[^']*)'")


def _name(info: Any) -> str:
    return info.name or typer.main.get_command_name(info.callback.__name__)


def _load(name: str) -> Any:
    """Build one command and no other: all commands of a room take longer than most of them run."""
    room = importlib.import_module(f"{__package__}.{_MODULES[name]}.cli").app
    one = App()
    one.registered_groups = [info for info in room.registered_groups if info.name == name]
    one.registered_commands = [info for info in room.registered_commands if _name(info) == name]
    return typer.main.get_group(one).commands[name]


class _Contents(Group):
    """The commands by name, each loaded when it is used. The help page needs none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _load(cmd_name) if cmd_name in _MODULES else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, _MODULES)) + 2
        for (title, _), commands in CONTENTS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])


app = App()
app.info.cls = _Contents
app.info.help = "Make an installed transformers run on AMD GPUs through AMD's kernels, and put every byte back."
app.info.epilog = (
    "\b\nExamples:\n  overlay install --transformers 4.57\n"
    "  overlay status --check && AMD_OPS=auto python serve.py\n  overlay run --profile auto -- python serve.py\n"
    "  overlay revert\n\nEach command explains itself: overlay install --help"
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"overlay {__version__}")
        raise typer.Exit


def _know_shells() -> None:
    """Let typer register what it knows of shells: with no options of its own for completion it does not by itself."""
    from typer._completion_classes import completion_init

    completion_init()


def _print_completion(shell: str | None) -> None:
    """Print what a shell reads to complete commands, options, models, releases and files; the library makes it."""
    if shell is not None:
        os.environ[_COMPLETE] = f"source_{shell}"
        _know_shells()
        typer.main.get_command(app).main([], prog_name="overlay")


@app.callback()
def _overlay(
    completion: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        typer.Option(
            "--completion", help="Print the completion script of a shell.", is_eager=True, callback=_print_completion
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("-V", "--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Run the program and return its exit code: that of its work, unless what it had to print could not be written."""
    console.start()
    if _COMPLETE in os.environ:
        _know_shells()
    with console.guarded() as stdout:
        code = _run(arguments)
        if code:
            console.explain(_command(arguments))
        sys.stdout.flush()
        if stdout is not None and stdout.problem is not None:
            code = console.unwritten(_command(arguments), code, stdout.problem)
    return code


def _own(arguments: list[str]) -> list[str]:
    """What is ours: the words after ``--`` belong to another command."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _command(arguments: list[str]) -> str:
    """Return the command that is meant, as ``tune.report``; "overlay" where none is."""
    words = [word for word in _own(arguments) if not word.startswith("-")]
    if not words or words[0] not in _MODULES:
        return "overlay"
    try:
        below = getattr(_load(words[0]), "commands", {})
    except ModuleNotFoundError:  # a library of the whole room is missing, which is being told
        return words[0]
    word = words[1].lstrip(".") if len(words) > 1 else ""
    return f"{words[0]}.{word}" if word in below else words[0]


def _run(arguments: list[str]) -> int:
    """Run the program and return its exit code; every problem becomes one message."""
    from rocm_overlay.install.transaction.signals import HardStop

    try:
        code = typer.main.get_command(app).main(arguments or ["--help"], prog_name="overlay", standalone_mode=False)
        if code != INTERRUPTED:
            return code if isinstance(code, int) else 0
        found: BaseException = _stopped(_command(arguments))  # newer releases of typer return the code of a Ctrl-C
    except OverlayError as error:
        found = error
    except _CommandLineError as error:
        found = _usage(_command(arguments), error)
    except (KeyboardInterrupt, HardStop, typer.Abort):
        found = _stopped(_command(arguments))
    except OSError as error:
        found = _refused(error)
    except ModuleNotFoundError as error:
        found = _missing(error) if error.name in _EXTRAS else error
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug gets its own exit code and its traceback
        found = error
    return console.failure(_command(arguments), found, as_json="--json" in _own(arguments))


def _stopped(command: str) -> OverlayError:
    """What a signal did: one on an environment is recovered by the next, a long one goes on."""
    if _MODULES.get(command.split(".")[0]) == "install":
        message = "Stopped by a signal; an open transaction is finished by the next overlay command."
        return CancelledError("interrupted", message, remedy="run `overlay status`")
    message = "Stopped by a signal; what was finished is kept where the command keeps anything."
    return CancelledError("interrupted", message, remedy="run the same command again to go on")


def _missing(error: ModuleNotFoundError) -> OverlayError:
    message = f"this command needs {error.name}, which is not installed in {sys.prefix}"
    return UsageError("no-library", message, remedy=f"run `pip install {_EXTRAS[error.name or '']}`")


def _refused(error: OSError) -> OverlayError:
    return WriteError(
        "system",
        f"The system refused: {error}.",
        remedy="check permissions and space of the environment, then run `overlay status`",
        paths=[name for name in (error.filename, error.filename2) if name],
    )


def _usage(command: str, error: Exception) -> OverlayError:
    """Turn click's complaint into ours, with the nearest values that would have been accepted."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    match = _NOT_ONE_OF.search(message) or _NO_COMMAND.search(message)
    if match is not None:
        choices = re.findall(r"'([^']*)'", match.groupdict().get("choices") or "") or _below(command)
        near = alike(match["found"], choices)
        message = re.sub(r",? Did you mean .*", "", message) + (f" Did you mean {' or '.join(near)}?" if near else "")
    hint = "overlay --help" if command == "overlay" else f"overlay {command.replace('.', ' ')} --help"
    return UsageError("usage", message or "no command given", remedy=f"run `{hint}`")


def _below(command: str) -> list[str]:
    """The commands that could have been meant: those of the group, else all."""
    return list(_MODULES) if command == "overlay" else list(getattr(_load(command), "commands", {}))
