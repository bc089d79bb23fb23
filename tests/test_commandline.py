"""Options that are written once: a field's name is its flag, and a command may give a group other defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from rocm_overlay.commandline import App
from typer import Option

REQUIRED: Any = ...


@dataclass(frozen=True)
class Given:
    """A group of options."""

    name: Annotated[str, Option(help="A text.")] = "first"
    dry_run: Annotated[bool, Option(help="A switch.")] = False
    undone: Annotated[bool, Option("--undone", help="A switch that names its flag.")] = False
    both: Annotated[bool, Option("--both/--no-both", help="A switch with two flags.")] = True


SECOND, NAMED = Given(name="second"), Given(name=REQUIRED)


def made() -> tuple[Any, list[Given]]:
    app, seen = App("overlay plain"), list[Given]()

    @app.command("overlay plain --dry-run")
    def plain(given: Given) -> None:
        seen.append(given)

    @app.command("overlay other", name="other-name")
    def other(given: Given = SECOND) -> None:
        seen.append(given)

    @app.command("overlay named")
    def named(given: Given = NAMED) -> None:
        seen.append(given)

    return typer.main.get_command(app), seen


def run(*words: str) -> Given:
    command, seen = made()
    command.main([*words], standalone_mode=False)
    return seen[0]


def test_a_group_has_the_defaults_of_its_fields_or_of_the_instance_that_a_command_gives() -> None:
    assert run("plain") == Given()
    assert run("other-name") == SECOND
    assert run("other-name", "--name", "third", "--dry-run") == Given("third", True)


def test_an_option_that_must_be_given_is_refused_where_it_is_not() -> None:
    with pytest.raises(typer.BadParameter.__bases__[0], match=r"Missing .*name"):
        run("named")
    assert run("named", "--name", "one") == Given("one")


def test_a_switch_has_its_name_as_its_only_flag_unless_it_says_otherwise() -> None:
    command, _ = made()
    flags = {one.name: (one.opts, one.secondary_opts) for one in command.commands["plain"].params}
    assert flags["dry_run"] == (["--dry-run"], [])
    assert flags["undone"] == (["--undone"], [])
    assert flags["both"] == (["--both"], ["--no-both"])
    assert run("plain", "--no-both") == Given(both=False)


def test_a_help_page_ends_in_the_examples() -> None:
    command, _ = made()
    assert command.epilog.endswith("Examples:\n  overlay plain")
    assert command.commands["plain"].epilog.endswith("Examples:\n  overlay plain --dry-run")
