"""What is printed where: encodings, closed and full outputs, readers that leave. The work's exit code stands."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rocm_overlay import console

from tests.install.support import environment, make_site, modeling, run_process

PROGRAM = f"{sys.executable} -m rocm_overlay"


def shell(script: str, site: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script; $OVERLAY runs the program, $1 is the folder."""
    extra = {"OVERLAY": PROGRAM}
    command = ["bash", "-c", script, "bash", str(site)]
    return subprocess.run(command, env=environment(extra), capture_output=True, text=True, timeout=120, check=False)


INSTALL = '$OVERLAY install --transformers 4.57 --site-packages "$1"'
STATUS = '$OVERLAY status --check --site-packages "$1"'


@pytest.mark.parametrize(
    "encoding",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_diff_is_utf_8_whatever_the_terminal_shows(site: Path, encoding: dict[str, str]) -> None:
    file = modeling(site, "llama")
    file.write_bytes(file.read_bytes() + "# na\u00efve\n".encode())
    command = [sys.executable, "-m", "rocm_overlay", "diff", "--site-packages", str(site)]
    done = subprocess.run(command, env=environment(encoding), capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "+# na\u00efve\n".encode() in done.stdout


def test_a_path_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    site = make_site(tmp_path / "na\u00efve")
    done = run_process("status", "--site-packages", str(site), PYTHONIOENCODING="ascii")
    assert done.code == 0
    assert "na\\xefve" in done.out


@pytest.mark.parametrize("sink", [">&-", ">/dev/full"])
@pytest.mark.parametrize("form", ["", " --json"])
def test_a_report_that_cannot_be_written_is_no_failed_install(site: Path, sink: str, form: str) -> None:
    done = shell(f"{INSTALL}{form} {sink}", site)
    assert done.returncode == 0, done.stderr
    assert "the report could not be written" in done.stderr
    assert "exit code 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert shell(STATUS, site).returncode == 0


@pytest.mark.parametrize(
    "command", ["export --transformers 4.57.6", "list", "env", "tune estimate --model llama-3.1-8b"]
)
def test_an_answer_that_is_cut_off_is_a_failure(site: Path, command: str) -> None:
    done = shell(f"$OVERLAY {command} > /dev/full", site)
    assert done.returncode == 5
    assert "output truncated: No space left on device" in done.stderr
    assert "  next: " in done.stderr


@pytest.mark.parametrize("sink", [">&-", ">/dev/full", ">&- 2>&-", ">/dev/full 2>/dev/full", "2>&-"])
def test_the_exit_code_of_the_check_stands(site: Path, sink: str) -> None:
    assert shell(f"{STATUS} {sink}", site).returncode == 1
    shell(INSTALL, site)
    assert shell(f"{STATUS} {sink}", site).returncode == 0


def test_a_closed_stderr_does_not_leak_into_stdout(tmp_path: Path) -> None:
    done = shell('$OVERLAY status --json --site-packages "$1" 2>&-', tmp_path / "nowhere")
    assert done.returncode == 9
    assert done.stdout.rstrip().endswith("}")


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["status", "--check"], ["diff"], ["install"]])
def test_a_reader_that_leaves_changes_no_exit_code(site: Path, arguments: list[str]) -> None:
    shell(INSTALL, site)
    reading, writing = os.pipe()
    os.close(reading)
    where = [] if arguments[0] in ("list", "--help") else ["--site-packages", str(site)]
    more = ["--transformers", "4.57"] if arguments == ["install"] else []
    command = [sys.executable, "-m", "rocm_overlay", *arguments, *more, *where]
    try:
        done = subprocess.run(
            command, env=environment(), stdout=writing, stderr=subprocess.PIPE, timeout=120, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_path_that_is_no_text_at_all(tmp_path: Path) -> None:
    """Names are bytes on Linux: one that no encoding explains is escaped, handled and reverted like any other."""
    folder = os.fsencode(str(tmp_path)) + b"/\xff"
    site = make_site(Path(os.fsdecode(folder)))
    for arguments in (["status"], ["status", "--json"], ["diff"], ["doctor"], ["attest"], ["revert"]):
        command = [sys.executable, "-m", "rocm_overlay", *arguments, "--site-packages", os.fsdecode(folder)]
        done = subprocess.run(command, env=environment(), capture_output=True, timeout=120, check=False)
        # There are no overlays for release 1.0.0, which doctor calls a problem.
        assert done.returncode == (1 if arguments == ["doctor"] else 0), (arguments, done.stderr)
        assert b"Traceback" not in done.stderr
    assert site.is_dir()


@pytest.mark.parametrize("arguments", [["doctor"], ["scan", "."], ["export", "--transformers", "4.57.6"], ["attest"]])
def test_new_commands_outlive_their_readers(site: Path, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    where = ["--site-packages", str(site)] if arguments[0] in ("doctor", "attest") else []
    try:
        command = [sys.executable, "-m", "rocm_overlay", *arguments, *where]
        done = subprocess.run(command, env=environment(), stdout=writing, stderr=subprocess.PIPE, cwd=site, check=False)
    finally:
        os.close(writing)
    assert b"Traceback" not in done.stderr
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_table_has_no_colour_where_none_is_wanted(site: Path) -> None:
    import pty

    for extra, coloured in (({"NO_COLOR": "1"}, False), ({"TERM": "xterm-256color"}, None)):
        environ = {**environment(), **extra}
        if "NO_COLOR" not in extra:
            del environ["NO_COLOR"]
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "rocm_overlay", "status", "-v", "--site-packages", str(site)]
        done = subprocess.run(command, env=environ, stdout=follower, timeout=120, check=False)
        os.close(follower)
        out = os.read(leader, 1 << 16)
        os.close(leader)
        assert done.returncode == 0
        assert b"modeling_llama.py" in out
        if coloured is False:
            assert b"\x1b[" not in out


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(_Terminal, "\r"), (io.StringIO, "\n")], ids=["terminal", "piped"])
def test_short_steps_show_how_far_they_are_once_they_take_long(
    stream: type[io.StringIO], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step per second: on a terminal one line from the third step on, elsewhere a line after ten."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console.sys, "stderr", stream())
    console.set_level(console.NORMAL)
    said = []
    with console.short_steps(13) as step:
        for number in range(13):
            now[0] += 1.0
            step(f"file {number}")
            said.append(console.sys.stderr.getvalue())
    first = next(number for number, text in enumerate(said) if text)
    assert first == (1 if shown == "\r" else 9)
    assert f"{first + 1} of 13, about {12 - first}" in said[-1]
    assert f" left: file {first}" in said[-1]
    assert (said[-1].count("\r") == 11) == (shown == "\r")
    assert said[-1].count("\n") == (0 if shown == "\r" else 1)
    assert console.sys.stderr.getvalue().endswith("\r\x1b[K") == (shown == "\r"), "and the line is taken away"


def test_a_quiet_command_says_why_its_exit_code_is_not_0(site: Path, tmp_path: Path) -> None:
    """A health check of an image, and a later job that compares: silence is for what is in order."""
    here = ["--site-packages", str(site)]
    attested = tmp_path / "overlay.json"
    assert run_process("install", "--transformers", "4.57", *here).code == 0
    attested.write_text(run_process("attest", *here).out)
    for words in (["status", "--check"], ["attest", "--verify", str(attested)]):
        done = run_process(*words, "-q", *here)
        assert (done.code, done.out, done.err) == (0, "", "")
    assert run_process("revert", *here).code == 0
    assert run_process("status", "--check", "-q", *here).err.splitlines()[0] == "overlay status: not applied (STOCK)"
    done = run_process("attest", "--verify", str(attested), "-q", *here)
    assert (done.code, done.out) == (1, ""), "the list is for those who asked for it"
    first, last = done.err.splitlines()
    assert first.endswith(f" differ from {attested}")
    assert last.startswith("  next: ")


def test_an_edited_file_is_called_edited_and_the_next_step_is_named(site: Path) -> None:
    file = modeling(site, "llama")
    file.write_bytes(file.read_bytes() + b"# mine\n")
    done = run_process("status", "--site-packages", str(site))
    assert "llama  models/llama/modeling_llama.py  edited" in done.out
    assert "next: run `overlay doctor`" in done.out
