"""The GitHub action: its steps, run as a runner would run them, and the line for every other CI."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.install.support import ROOT, environment

ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


def steps(**inputs: str) -> list[tuple[str, str, dict[str, str]]]:
    """Name, script and variables of every step, with the inputs put in."""
    given = {name: str(spec.get("default", "")) for name, spec in ACTION["inputs"].items()} | inputs

    def put(text: Any) -> str:
        text = str(text).replace("${{ github.action_path }}", str(ROOT))
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: given[match[1]], text)

    return [
        (step["name"], put(step["run"]), {name: put(value) for name, value in step.get("env", {}).items()})
        for step in ACTION["runs"]["steps"]
    ]


@pytest.fixture
def python(tmp_path: Path, site: Path) -> Path:
    """An interpreter with a transformers of its own; the program is that of this checkout."""
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env], check=True)
    folder = next(env.glob("lib/python*/site-packages"))
    for part in site.iterdir():
        part.rename(folder / part.name)
    wrapper = tmp_path / "python"
    ours = f'if [ "$1 $2" = "-m rocm_overlay" ]; then exec {sys.executable} "$@"; fi'
    wrapper.write_text(f'#!/bin/bash\n{ours}\nexec {env}/bin/python "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def test_the_steps_install_check_and_attest(tmp_path: Path, python: Path) -> None:
    made = steps(python=str(python), transformers="4.57", models="llama,qwen3", attestation="made.json")
    assert made[0][1] == '"$PYTHON" -m pip install "$ACTION_PATH"', "the step that needs an index is not run here"
    for name, script, variables in made[1:]:
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=tmp_path, env=environment(variables), capture_output=True, text=True, check=False,
        )  # fmt: skip
        # A tree of a few models is not all that its RECORD lists: what --deep says of the others is not under test.
        assert done.returncode == 0 or name == "Check what is installed", (name, done.stderr)
    attested = json.loads((tmp_path / "made.json").read_text())
    assert (attested["state"], attested["schema"]) == ("APPLIED", "amd-overlay.attest/1")
    assert {one["model"] for one in attested["files"] if one["state"] == "overlay"} == {"llama", "qwen3"}


def test_no_input_is_pasted_into_a_script() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
        assert step["shell"] == "bash"


def test_an_input_is_a_word_whatever_it_holds(tmp_path: Path, python: Path) -> None:
    name, script, variables = steps(python=str(python), transformers="4.57; touch pwned")[1]
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment(variables), check=False)
    assert done.returncode == 2, name
    assert not (tmp_path / "pwned").exists()


def test_the_line_for_other_systems_is_made_of_commands_that_exist() -> None:
    page = (ROOT / "docs/ci.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("    overlay install"))
    for command in line.strip().split(" && "):
        words = command.split(" > ")[0].split()[1:]
        asked = [words[0], "--help"]
        done = subprocess.run(
            [sys.executable, "-m", "rocm_overlay", *asked], env=environment(), capture_output=True, check=True
        )
        for option in [word for word in words if word.startswith("--")]:
            assert option.encode() in done.stdout
