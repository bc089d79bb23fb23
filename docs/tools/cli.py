"""Writes docs/cli.md: the help of every command, as it is at 80 columns.

python docs/tools/cli.py            # write
python docs/tools/cli.py --check    # exit 1 where the page says something else
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from rocm_overlay.app import CONTENTS, run

PAGE = Path(__file__).resolve().parents[1] / "cli.md"
HEAD = """# Every command

Written by `make tables` from the program itself. `-q` prints errors only, `-v` details, `--json` one object of the
shape `{"schema", "ok", "exit_code", ...}`; a refusal has `error` with `id`, `message`, `place`, `paths`, `findings` and
`remedy`. The schemas travel with the program, in `rocm_overlay/cli/schemas`. Exit codes are those of
[operations](operations.md#exit-codes). `python -m rocm_overlay` is the same program.
"""


def helped(*words: str) -> str:
    """Return the help of one command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run([*words, "--help"])
    return out.getvalue().rstrip()


def page() -> str:
    """Return the whole page."""
    os.environ["COLUMNS"] = "80"
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    for (title, room), names in CONTENTS.items():
        yield f"## {title}\n"
        built = typer.main.get_group(importlib.import_module(f"rocm_overlay.{room}.cli").app).commands
        for name in names:
            for words in ((name,), *((name, sub) for sub in getattr(built[name], "commands", {}))):
                yield f"### overlay {' '.join(words)}\n\n```text\n{helped(*words)}\n```\n"


if __name__ == "__main__":
    made = page()
    if "--check" not in sys.argv:
        PAGE.write_text(made, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != made:
        sys.exit(f"{PAGE.name} is not what the program says: run `make tables`")
