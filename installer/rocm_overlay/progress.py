"""How far a long command is, on stderr: a bar on a terminal, something plain elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Step = Callable[[str], None]


@contextmanager
def progress(stream: TextIO, total: int, first: str, *, elsewhere: Step, done: int = 0) -> Iterator[Step]:
    """Yield what is called at every step with what is being done.

    ``first`` is shown until the first step, ``done`` steps were made by an earlier run. Where nobody watches a
    terminal, ``elsewhere`` is called instead.
    """
    if not stream.isatty():
        yield elsewhere
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    texts = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), texts)
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(first, total=total, completed=done)
        yield lambda text: bar.update(task, advance=1, description=text)
