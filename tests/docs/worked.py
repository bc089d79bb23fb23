"""Runs a page of docs/ as its reader would: block after block, in one folder, with an environment of its own.

=====================================  ==============================================================================
Block                                  What is done with it
=====================================  ==============================================================================
``bash``                               run by bash; a status other than 0 fails, unless the block tests it itself
``python``                             run by the environment's interpreter, in a fresh process
any language with ``title="NAME"``     written to the file NAME below the folder
``diff``                               applied with ``git apply``
``text`` right after one that ran      what that block prints; ``...`` stands for anything, as in doctest
=====================================  ==============================================================================

``<!-- skip: next "reason" -->`` before a block keeps it from being run. Finding the blocks is sybil's work.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import SkipTest

from sybil import Document, Example, Region
from sybil.example import SybilFailure
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

INFO = re.compile(r'(?P<language>[a-z]+)(?: +title="(?P<title>[^"]+)")?[ ]*$\n', re.MULTILINE)
RUN = {"bash": ("bash", "-euo", "pipefail", "-c"), "python": ("python", "-c")}
SECONDS = 300
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass
class Page:
    """A page, the folder it is worked in, and the environment variables of its reader."""

    path: Path
    folder: Path
    environ: dict[str, str]
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    printed: str | None = None

    def work(self) -> None:
        """Do everything the page says, in its order. Raises SybilFailure with the line of a block that is wrong."""
        for example in Document.parse(str(self.path), self._blocks, SkipParser()).examples():
            try:
                example.evaluate()
            except SkipTest as reason:
                self.skipped.append(str(reason))
                self.printed = None

    def _blocks(self, document: Document) -> Iterator[Region]:
        for region in RawFencedCodeBlockLexer(INFO)(document):
            region.parsed, region.evaluator = region.lexemes["source"], self._evaluate
            yield region

    def _evaluate(self, example: Example) -> None:
        language, title = example.region.lexemes["language"], example.region.lexemes["title"]
        text = str(example.parsed)
        if title is not None:
            self._write(title, text)
        elif language == "diff":
            self._run(example, ["git", "apply", "--recount", "-"], text)
        elif language in RUN:
            self._run(example, [*RUN[language], text])
        elif language == "text" and self.printed is not None:
            self._compare(example, text)

    def _write(self, title: str, text: str) -> None:
        path = self.folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.printed = None

    def _run(self, example: Example, command: list[str], given: str = "") -> None:
        done = subprocess.run(
            command, input=given, cwd=self.folder, env=self.environ, text=True, timeout=SECONDS, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            raise SybilFailure(example, f"status {done.returncode} of\n{example.parsed}\n{done.stdout[-6000:]}")
        self.ran.append(str(example.parsed))
        self.printed = done.stdout

    def _compare(self, example: Example, wanted: str) -> None:
        assert self.printed is not None
        if not doctest.OutputChecker().check_output(wanted, self.printed, FLAGS):
            raise SybilFailure(example, f"The page shows\n{wanted}\nand the block above it printed\n{self.printed}")
        self.printed = None


def environ(interpreter: Path, **extra: str) -> dict[str, str]:
    """The variables of somebody who activated the environment of ``interpreter``."""
    dropped = ("USE_", "AMD_OPS", "FORCE_EAGER", "PRESHUFFLE", "VIRTUAL_ENV", "CONDA_", "PYTHONPATH", "PIP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = os.pathsep.join([str(interpreter.parent), kept.get("PATH", "")])
    fixed = {"VIRTUAL_ENV": str(interpreter.parent.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
             "NO_COLOR": "1", "COLUMNS": "120"}  # fmt: skip
    return {**kept, "PATH": path, **fixed, **extra}
