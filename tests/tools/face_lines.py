"""Count the lines of printing, errors and command line: ``python -m tests.tools.face_lines [COMMIT]``, default HEAD.

The rule is a list of names, so that two commits are counted alike: everything below ``rocm_overlay/cli``, and the files
of any room that are called as below. Work that stands in a ``command.py`` counts, too; helpers elsewhere do not.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOL = "installer/rocm_overlay"
NAMES = (
    "__main__", "app", "cli", "command", "commandline", "commands", "console", "errors", "options", "output", "page",
    "progress", "report", "streams",
)  # fmt: skip
_FACE = re.compile(rf"/cli/.*\.py$|/({'|'.join(NAMES)})\.py$")


def count(commit: str) -> dict[str, int]:
    """Return lines by file."""
    listed = _git("ls-tree", "-r", "--name-only", commit, TOOL).splitlines()
    files = [file for file in listed if _FACE.search(file) and "/overlays/" not in file]
    return {file: len(_git("show", f"{commit}:{file}").splitlines()) for file in files}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main(arguments: list[str]) -> None:
    """Print a line per file, and the sum."""
    found = count(arguments[0] if arguments else "HEAD")
    for file, lines in sorted(found.items(), key=lambda one: -one[1]):
        print(f"{lines:6} {file.removeprefix(TOOL + '/')}")
    print(f"{sum(found.values()):6} in {len(found)} files")


if __name__ == "__main__":
    main(sys.argv[1:])
