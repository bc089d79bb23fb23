"""Windows and macOS: one sentence at once, on every command, instead of a traceback from an import."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rocm_overlay import app, cli
from rocm_overlay.errors import UNSUPPORTED

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = [name for (_, _), commands in app.CONTENTS.items() for name in commands]


@pytest.mark.parametrize("system", ["win32", "darwin"])
@pytest.mark.parametrize("command", [*COMMANDS, "", "--help"])
def test_every_command_says_so(
    command: str, system: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(sys, "argv", ["overlay", *command.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == UNSUPPORTED
    out, err = capsys.readouterr()
    assert out == ""
    assert f"Linux only: this is {system}" in err
    assert "next: " in err


def test_json_is_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "argv", ["overlay", "status", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    answer = json.loads(capsys.readouterr().out)
    assert (answer["schema"], answer["ok"], answer["error"]["id"]) == ("amd-overlay.status/1", False, "system")


WITHOUT_POSIX = """
    import os, signal, sys
    for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog"):
        sys.modules[name] = None
    for name in ("fork", "register_at_fork", "fchmod", "fchown", "geteuid", "getuid", "killpg", "setsid", "statvfs"):
        delattr(os, name)
    for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGQUIT", "pthread_sigmask"):
        delattr(signal, name)
    sys.platform = "win32"
"""


def test_no_import_gets_in_its_way() -> None:
    """The answer, and the run-time layer, import nothing that only POSIX has."""
    text = textwrap.dedent(WITHOUT_POSIX)
    answer = f"{text}\nsys.argv = ['overlay', 'install']\nfrom rocm_overlay.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", answer], capture_output=True, text=True, cwd=ROOT / "installer", check=False
    )
    assert done.returncode == UNSUPPORTED, done.stderr
    assert done.stderr.startswith("overlay install: Linux only: this is win32")
    assert "Traceback" not in done.stderr


def test_the_run_time_layer_needs_no_fork() -> None:
    layer = "import torch, os\ndel os.register_at_fork\nimport amd_ops\nprint(amd_ops.report().as_dict()['schema'])"
    done = subprocess.run([sys.executable, "-c", layer], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "amd-ops.report/1", done.stderr
