"""What every command shows at 60, 80 and 120 columns and through a pipe, kept beside this file and looked at.

``OVERLAY_WRITE_SCREENS=1 pytest tests/screens`` writes the files anew. No line is wider than its terminal.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rocm_overlay import console
from rocm_overlay.app import run
from rocm_overlay.bench import formats
from rocm_overlay.install import gpu, report
from rocm_overlay.verify import report as verification

from tests.bench.samples import made_up_report
from tests.install.support import environment
from tests.screens.samples import verified
from tests.test_answers import COMMANDS, REFUSED

SCREENS = Path(__file__).with_name("screens")
WIDTHS = ("60", "80", "120", "piped")
PLACE = "/srv/app"
GROUPS = ("tune", "synth")


@pytest.fixture
def screen(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str, Callable[[], Any]], None]:
    """Return ``screen(name, work)``: what ``work`` prints at each width is what was kept under that name."""
    shown, layout = console._shown, console.layout

    def place(text: str) -> str:
        """Leave out what differs from run to run and from bundle to bundle, before lines are folded."""
        text = re.sub(r"overlay \S+, manifest \w+, applied \S+", "overlay 4.57-g3-0123456789ab, applied now", text)
        return text.replace(str(tmp_path), PLACE)

    monkeypatch.setattr(console, "_shown", lambda text, *rest: shown(place(text), *rest))
    monkeypatch.setattr(
        console,
        "layout",
        lambda head, rows, width: layout(head, [[place(cell) for cell in row] for row in rows], width),
    )
    monkeypatch.setattr(report, "elapsed", lambda: 0.4)
    monkeypatch.setattr(gpu, "NODES", tmp_path / "no-gpu")
    for name in [name for name in os.environ if name.startswith(("AMD_OPS", "USE_"))]:
        monkeypatch.delenv(name)

    def take(name: str, work: Callable[[], Any]) -> None:
        parts = []
        for width in WIDTHS:
            monkeypatch.setenv("COLUMNS", width) if width != "piped" else monkeypatch.delenv("COLUMNS")
            capfd.readouterr()
            work()
            out, err = capfd.readouterr()
            if width != "piped":
                wide = [line for line in (out + err).splitlines() if len(line) > int(width)]
                assert wide == [], f"wider than {width}"
            parts.append(f"==== {width}\n{out}" + (f"---- stderr\n{err}" if err else ""))
        text = "".join(parts)
        file = SCREENS / f"{name}.txt"
        if os.environ.get("OVERLAY_WRITE_SCREENS") == "1":
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, "utf-8")
        assert text == file.read_text("utf-8"), "look at it, then write it anew with OVERLAY_WRITE_SCREENS=1"

    return take


@pytest.mark.parametrize("command", ["", *COMMANDS, *GROUPS])
def test_help(command: str, screen: Callable[..., None]) -> None:
    screen(f"help {command}".strip(), lambda: run([*filter(None, command.split(".")), "--help"]))


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("profile", "bench", "synth.parallel")])
def test_refusals(command: str, screen: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if command == "run":
        return  # `run -- true` starts it
    words = REFUSED[command].format(tmp=tmp_path).split()
    screen(f"refused {command}", lambda: run([*command.split("."), *words]))


def test_the_life_of_an_environment(screen: Callable[..., None], site: Path) -> None:
    where = ["--site-packages", str(site)]
    install = ["install", "--transformers", "4.57", *where]
    screen("status stock", lambda: run(["status", "--check", *where]))
    screen("install planned", lambda: run([*install, "--dry-run"]))
    first = [run([*install, "-q"]), run(["revert", *where, "-q"])]
    assert first == [0, 0]

    def both_ways() -> None:
        run([*install, "--models", "llama,qwen3"])
        run(["revert", *where])

    screen("install and revert", both_ways)
    run([*install, "--models", "llama,qwen3", "-q"])
    screen("install again", lambda: run([*install, "--models", "llama,qwen3"]))
    screen("status applied", lambda: run(["status", *where]))
    screen("status details", lambda: run(["status", "-v", *where]))
    screen("doctor", lambda: run(["doctor", *where]))
    screen("recover", lambda: run(["recover", *where]))
    file = site / "transformers/models/llama/modeling_llama.py"
    file.write_bytes(file.read_bytes() + b"# mine\n")
    screen("status edited", lambda: run(["status", "--check", *where]))
    screen("doctor edited", lambda: run(["doctor", *where]))
    screen("revert refused", lambda: run(["revert", *where]))


def test_lists_and_exports(screen: Callable[..., None]) -> None:
    screen("list", lambda: run(["list"]))
    screen("list details", lambda: run(["list", "-v"]))
    screen("env", lambda: run(["env", "--profile", "max", "--gpu", "MI300X", "-v"]))
    screen("env fish", lambda: run(["env", "--profile", "auto", "--gpu", "gfx1201", "--shell", "fish"]))


def test_scan(screen: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/Dockerfile").write_text("FROM nvidia/cuda:12.4.1-devel-ubuntu22.04\n")
    (tmp_path / "src/a.cu").write_text("#include <cudnn.h>\nvoid f() { cudnnConvolutionForward(h); }\n")
    (tmp_path / "src/a.py").write_text("import flash_attn, flashinfer\n")
    screen("scan", lambda: run(["scan", str(tmp_path / "src")]))


def test_tables(screen: Callable[..., None]) -> None:
    screen("tune estimate", lambda: run(["tune", "estimate", "--model", "llama-3.1-8b", "--gpu", "MI300X"]))


def test_measurements(screen: Callable[..., None], tmp_path: Path) -> None:
    content = made_up_report(tmp_path, "toggles", {"all": 0.8})
    content["model"]["path"] = "a model"
    content["machine"].update(device_name="made-up CPU", torch="2.13.0", transformers="4.57.6")
    screen("bench", lambda: formats.show(content))
    screen("verify", lambda: verification.show(*verified(), 37.0))


def in_terminal(*words: str, **extra: str) -> bytes:
    """What a terminal of 80 columns gets."""
    main, other = pty.openpty()
    env = {**environment(extra), "COLUMNS": "80", "TERM": "xterm"}
    if "NO_COLOR" not in extra:
        env.pop("NO_COLOR")
    command = [sys.executable, "-m", "rocm_overlay", *words]
    child = subprocess.Popen(command, env=env, stdout=other, stderr=other, stdin=subprocess.DEVNULL)
    os.close(other)
    seen = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        seen += part
    os.close(main)
    child.wait()
    return seen


def test_colour_is_for_terminals_whose_users_want_it(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import flash_attn\n")
    words = ("doctor", "--site-packages", str(tmp_path))
    assert b"\x1b[" in in_terminal(*words)
    assert b"\x1b" not in in_terminal(*words, NO_COLOR="1")


def test_a_terminal_without_our_signs_gets_plain_ones(tmp_path: Path) -> None:
    seen = in_terminal("list", PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert seen.isascii()
    seen = in_terminal("doctor", "--site-packages", str(tmp_path), PYTHONIOENCODING="latin-1", NO_COLOR="1")
    assert b"\\u" not in seen
