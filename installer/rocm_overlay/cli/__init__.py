"""The `overlay` program. Its start is kept light: `--version` needs nothing but this file."""

from __future__ import annotations

import sys

from rocm_overlay import __version__


def _linux_only(arguments: list[str]) -> int:
    """Say that nothing here runs on another system, ahead of any import that fails there."""
    from ..console import failure
    from ..errors import UnsupportedError

    error = UnsupportedError(
        "system",
        f"Linux only: this is {sys.platform}, whose files and processes its transactions do not know.",
        remedy="run it on Linux, or in WSL on Windows",
    )
    command = next((word for word in arguments if not word.startswith("-")), "overlay")
    return failure(command, error, as_json="--json" in arguments)


def main() -> None:
    """Run the program with the arguments of the process and exit with its code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        print(f"overlay {__version__}")
        return
    if sys.platform != "linux":
        sys.exit(_linux_only(sys.argv[1:]))
    try:
        from ..app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while modules were loaded, or while an earlier signal was being told
        print("overlay: stopped by a signal", file=sys.stderr)
        code = 130
    sys.exit(code)
