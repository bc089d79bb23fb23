"""What a shell gets: a script, and words for commands, models, releases and GPUs."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.install.support import Done, environment, run_process


def asked(line: str) -> list[str]:
    """The words that bash would offer for the last word of a command line."""
    words = line.split(" ")
    done = run_process(_OVERLAY_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    return [word.rpartition(",")[2] if word.startswith("plain,") else word for word in done.out.split()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script_that_it_can_read(shell: str) -> None:
    done: Done = run_process("--completion", shell)
    assert (done.code, done.err) == (0, "")
    assert "_OVERLAY_COMPLETE" in done.out
    if shutil.which(shell):
        flags = ["-n"] if shell != "fish" else ["--no-execute"]
        command = [shell, *flags, "/dev/stdin"]
        subprocess.run(command, input=done.out.encode(), check=True, timeout=60, env=environment())


def test_commands_and_values_are_completed() -> None:
    assert asked("overlay inst") == ["install"]
    assert asked("overlay tune re") == ["report"]
    assert {"llama", "llama4"} <= set(asked("overlay install --models ll"))
    assert "llama,qwen3_moe" in asked("overlay install --models llama,qwen3")
    assert {"4.57", "4.57.6"} <= set(asked("overlay install --transformers 4.57"))
    assert "MI300X" in asked("overlay env --gpu MI30")
    assert asked("overlay env --profile au") == ["auto"]
