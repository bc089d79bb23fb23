"""Every command, those of `tune`, `bench` and `synth` too, explains its arguments, says in one line what it does, and
ends its help with examples, which are right.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rocm_overlay.app import CONTENTS, app
from rocm_overlay.bench.cli import bench_app as bench
from rocm_overlay.synth.cli import normalised, synth
from rocm_overlay.tune.cli import tune

PROGRAMS = {"tune": tune, "bench": bench, "synth": synth}
Command = Any  # click's, whose name depends on the release of typer


def commands() -> Iterator[tuple[str, Command]]:
    """Yield every command line prefix with the command that it starts."""
    root = typer.main.get_group(app)
    for (_, _), names in CONTENTS.items():
        for name in names:
            if name not in PROGRAMS:
                yield name, root.get_command(None, name)
                continue
            group = typer.main.get_command(PROGRAMS[name])
            yield name, group
            yield from ((f"{name} {sub}", one) for sub, one in group.commands.items())


ALL = dict(commands())


def examples(command: Command) -> list[str]:
    found = re.search(r"Examples:\n((?:  .+\n?)+)", command.epilog or "")
    return [line.strip() for line in found[1].splitlines()] if found else []


@pytest.mark.parametrize("name", ALL)
def test_every_command_ends_with_examples_of_itself(name: str) -> None:
    found = examples(ALL[name])
    assert found
    assert all(re.search(rf"\boverlay {re.escape(name)}\b", line) for line in found)


@pytest.mark.parametrize("name", ALL)
def test_every_argument_is_explained_once(name: str) -> None:
    command = ALL[name]
    context = command.make_context(name, [], resilient_parsing=True)
    page = " ".join(command.get_help(context).split())
    for parameter in command.get_params(context):
        if parameter.param_type_name == "argument":
            assert parameter.help, parameter.name
            assert page.count(parameter.help) == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_line_of_the_contents_is_cut(program: str) -> None:
    page = ALL[program].get_help(ALL[program].make_context(program, [], resilient_parsing=True))
    contents = page.partition("Commands:\n")[2].partition("\n\n")[0]
    assert contents
    assert "..." not in contents


@pytest.mark.parametrize("name", ALL)
def test_the_options_in_the_examples_exist(name: str) -> None:
    for line in examples(ALL[name]):
        call = re.search(r"overlay ([^>|&)]+)", line)
        assert call is not None
        words = shlex.split(call[1].strip().rstrip('"'))
        program, rest = words[0], words[1:]
        if program == "synth":
            rest = normalised(rest)
        command = ALL[program]
        if program in PROGRAMS and rest and f"{program} {rest[0]}" in ALL:
            command, rest = ALL[f"{program} {rest[0]}"], rest[1:]
        command.make_context(name, rest)  # raises where an option or a required argument is wrong
