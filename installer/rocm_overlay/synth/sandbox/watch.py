"""Report a forbidden operation by name before it is refused. The kernel's limits do not depend on this layer.

An audit hook cannot be removed again by the code that it watches; the import function of a program's own builtins can
be got around, which is why it is only the first of the layers.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import policy

_EVENTS = frozenset(
    [
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.kill",
        "os.killpg",
        "subprocess.Popen",
        "pty.spawn",
        "ctypes.dlopen",
        "socket.__new__",
        "socket.connect",
        "socket.bind",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "urllib.Request",
        "webbrowser.open",
        "sys.addaudithook",
        "mmap.__new__",
    ]
)
_FILES = frozenset(
    [
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.chmod",
        "os.chown",
        "os.truncate",
        "os.utime",
    ]
)
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_BUILDERS = frozenset(["gcc", "g++", "cc", "c++", "clang", "clang++", "ld", "as", "ldconfig", "uname"])


class Contained(BaseException):
    """Something was attempted that no program may do. No ``except Exception`` of the program catches it."""


def install(tell: Callable[[str], None], scratch: Path, *, building: bool) -> None:
    """Watch this process from now on. ``tell(what)`` is called before an attempt is refused.

    Writing below ``scratch`` is not told: torch.compile does it by itself, and the kernel's limits decide. While
    ``building``, starting a C compiler is not told either.
    """
    inside = f"{scratch}{os.sep}"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        what = _attempt(event, arguments, inside, building)
        if what:
            tell(what)
            raise Contained(what)

    sys.addaudithook(hook)


def _attempt(event: str, arguments: tuple[Any, ...], inside: str, building: bool) -> str:
    if event == "open":
        path, _, flags = arguments
        writing = isinstance(flags, int) and flags & _WRITE_FLAGS
        return f"open {path} for writing" if writing and not _within(path, inside) else ""
    if event in _FILES:
        return "" if _within(arguments[0], inside) else f"{event} {arguments[0]}"
    if event not in _EVENTS:
        return ""
    if event == "subprocess.Popen" and building and Path(str(arguments[0])).name in _BUILDERS:
        return ""
    if event == "ctypes.dlopen" and (arguments[0] is None or building):
        return ""
    if event in ("os.posix_spawn", "mmap.__new__") and building:
        return ""
    shown = f" {arguments[0]!r}" if arguments and isinstance(arguments[0], str | bytes | int) else ""
    return f"{event}{shown}"[:120]


def _within(path: object, inside: str) -> bool:
    if isinstance(path, int) or path == os.devnull:
        return True
    text = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else ""
    return (text + os.sep).startswith(inside)


def program_builtins(tell: Callable[[str], None]) -> dict[str, Any]:
    """Return builtins for a program: imports by the policy, and none of the functions that it forbids."""

    def guarded(name: str, globals_: Any = None, locals_: Any = None, names: Any = (), level: int = 0) -> Any:
        # torch's own C code imports parts of torch in the name of the caller, so the first word decides here.
        if level or name.split(".")[0] not in policy.MODULES:
            tell(f"import {name}")
            raise Contained(f"import {name}")
        return builtins.__import__(name, globals_, locals_, names, level)

    space = {name: value for name, value in vars(builtins).items() if name not in policy.BUILTINS_DENIED}
    return {**space, "__import__": guarded}
