"""The table of contents, and what every page of help owes its reader."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable

import pytest
import typer
from rocm_overlay.app import CONTENTS

from tests.install.support import Done, run_process

Overlay = Callable[..., Done]
COMMANDS = [name for (_, _), names in CONTENTS.items() for name in names]


def test_the_table_of_contents_is_what_the_commands_say() -> None:
    offered = {name: room for (_, room), names in CONTENTS.items() for name in names}
    for room in set(offered.values()):
        commands = typer.main.get_group(importlib.import_module(f"rocm_overlay.{room}.cli").app).commands
        assert set(commands) == {name for name, where in offered.items() if where == room}
        texts = {name: text for (_, where), names in CONTENTS.items() if where == room for name, text in names.items()}
        assert {name: (command.help or "").split("\n")[0] for name, command in commands.items()} == texts


def test_help_has_sections_and_every_command(overlay: Overlay) -> None:
    out = overlay("--help").out
    for (title, _), names in CONTENTS.items():
        assert f"\n{title}:\n" in out
        for name, text in names.items():
            assert re.search(rf"^  {name} +{re.escape(text)}$", out, re.MULTILINE), "one line each"
    assert "Examples:\n  overlay install --transformers 4.57\n" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(overlay: Overlay, command: str) -> None:
    done = overlay(command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: overlay {command}")
    if command not in ("tune", "bench", "synth"):  # programs of their own, with commands and help of their own
        assert re.search(rf"Examples:\n.*\boverlay {command}\b", done.out), done.out
        assert "--json" in done.out


def test_one_command_does_not_load_the_others() -> None:
    code = (
        "import json, sys\nfrom rocm_overlay.app import run\n"
        "run(['list'])\nprint('\\n' + json.dumps([n for n in sys.modules if n.startswith('rocm_overlay.')]))"
    )
    loaded = json.loads(run_process(code=code).out.splitlines()[-1])
    assert [name for name in loaded if name.endswith(".cli")] == ["rocm_overlay.install.cli"]
    assert not [name for name in loaded if ".doctor" in name or ".scan" in name or ".patchgen" in name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["env", "--profile", "atuo"], "Did you mean auto?"),
        (["attest", "--format", "cyclondx"], "Did you mean cyclonedx?"),
        (["export", "--format", "patch"], "Did you mean git-patch?"),
        (["install", "--transformers", "4.57", "--mode", "hok"], "Did you mean hook?"),
        (["scan", ".", "--format", "serif"], "Did you mean sarif?"),
        (["doctor", "--launcher", "torchrn"], "Did you mean torchrun?"),
        (["instal"], "install"),
        (["run", "--models", "lama", "--", "true"], "did you mean llama?"),
        (["env", "--gpu", "mi300"], "gfx942"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_the_nearest_right_value_is_named(overlay: Overlay, arguments: list[str], words: str) -> None:
    done = overlay(*arguments)
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err
