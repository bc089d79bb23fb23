"""Asks an interpreter where its packages are, without running anything of theirs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..errors import TargetError
from .transaction.decode import MalformedError, Reader, parse

TIMEOUT_SECONDS = 60
SHOWN_CHARACTERS = 160
_NO_PYTHON = "it printed nothing that a Python would print"

# Runs in the target interpreter, of any version from 3.8 on. The working directory that `-c` puts first is not part
# of the environment. Prints one line, so that chatter of a .pth file before it does no harm.
_SCRIPT = """
import json, os, sys, sysconfig
path = sys.path[1:] if sys.path and sys.path[0] == "" else sys.path
site = sys.modules.get("site")
marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
print("\\n" + json.dumps({
    "executable": sys.executable, "prefix": sys.prefix, "base_prefix": sys.base_prefix,
    "purelib": sysconfig.get_path("purelib"), "cache_tag": sys.implementation.cache_tag or "",
    "pycache_prefix": getattr(sys, "pycache_prefix", None),
    "user_site": getattr(site, "USER_SITE", None), "externally_managed": os.path.exists(marker),
    "path": [os.path.abspath(entry) for entry in path]}))
"""


@dataclass(frozen=True)
class View:
    """What one start of an interpreter sees."""

    executable: str
    prefix: str
    base_prefix: str
    purelib: str
    cache_tag: str
    pycache_prefix: str | None
    user_site: str | None
    externally_managed: bool
    path: tuple[str, ...]


def views(executable: Path) -> tuple[View, View]:
    """Return what an interpreter sees in the user's environment and in isolation (-I). Raises TargetError."""
    commands = [[str(executable), "-c", _SCRIPT], [str(executable), "-I", "-c", _SCRIPT]]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            running.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            )
        normal, isolated = (_answer(process, executable) for process in running)
    except OSError as error:
        raise _unusable(executable, error.strerror or str(error)) from error
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return normal, isolated


def _answer(process: subprocess.Popen[bytes], executable: Path) -> View:
    try:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _unusable(executable, f"it gave no answer within {TIMEOUT_SECONDS} s") from error
    lines = out.splitlines()
    if process.returncode != 0:
        raise _unusable(executable, f"it ended with {process.returncode}: {_last_line(err) or 'no answer'}")
    try:
        return _view(parse(lines[-1] if lines else b"", "the interpreter's answer"))
    except MalformedError as error:
        raise _unusable(executable, _NO_PYTHON) from error


def _last_line(err: bytes) -> str:
    """Return the line that names the error, cut: a program that is no Python may repeat the whole script in it."""
    line = " ".join(err.decode("utf-8", "replace").strip().splitlines()[-1:])
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 3] + "..."


def _view(reader: Reader) -> View:
    return View(
        executable=reader.text("executable"),
        prefix=reader.text("prefix"),
        base_prefix=reader.text("base_prefix"),
        purelib=reader.text("purelib"),
        cache_tag=reader.text("cache_tag"),
        pycache_prefix=reader.optional_text("pycache_prefix"),
        user_site=reader.optional_text("user_site"),
        externally_managed=reader.get("externally_managed") is True,
        path=reader.texts("path"),
    )


def _unusable(executable: Path, reason: str) -> TargetError:
    return TargetError(
        "interpreter-unusable",
        f"{executable} cannot be used as the Python to overlay: {reason}.",
        remedy="pass the interpreter of your environment with --python, or its packages folder with --site-packages",
        paths=[executable],
    )
