"""The `overlay` program. Its start is kept light: `--version` needs nothing but this file."""

from __future__ import annotations

import sys

from rocm_overlay import __version__


def main() -> None:
    """Run the program with the arguments of the process and exit with its code."""
    if sys.argv[1:] == ["--version"]:
        print(f"overlay {__version__}")
        return
    from .app import run

    sys.exit(run(sys.argv[1:]))
