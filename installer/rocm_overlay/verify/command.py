"""``overlay verify``: prove on this machine that the overlaid code computes what stock computes."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..install.transaction.errors import OverlayError, UsageError
from . import plan, report, target
from .workers import Setup, Step, run_all

SEED = 0


def run(
    model: Path | str,
    *,
    python: str | None = None,
    tiers: str | None = None,
    toggles: Sequence[str] | None = None,
    dtype: str = "float32",
    max_new_tokens: int = 8,
    json_output: bool = False,
) -> int:
    """Compare stock and overlaid code on a saved model and print the outcome; return the exit code.

    0: every run that could be made is within tolerance. 1: a case deviates or a process crashed. 2: usage. 3: no
    overlay for this model or text. 4: the installed file was edited. 8: a damaged bundle. 9: no usable interpreter.
    """
    start = time.perf_counter()
    notes = Console(stderr=True)
    try:
        setup, runs = prepare(Path(model), python, tiers, toggles or (), dtype, max_new_tokens)
        steps = len(setup.cases) * len(setup.implementations) * (1 + len(runs))
        with _progress(notes, steps) as step:
            results = run_all(setup, runs, step)
    except OverlayError as error:
        if json_output:
            report.write_error_json(error, sys.stdout)
        notes.print(f"overlay verify: {error.message}", highlight=False, markup=False, soft_wrap=True)
        notes.print(f"  {error.remedy}", highlight=False, markup=False, soft_wrap=True)
        return error.code
    seconds = time.perf_counter() - start
    if json_output:
        report.write_json(setup, results, seconds, sys.stdout)
    else:
        report.write_table(setup, results, seconds, _output())
    return report.exit_code(results)


def prepare(
    model: Path, python: str | None, tiers: str | None, toggles: Sequence[str], dtype: str, max_new_tokens: int
) -> tuple[Setup, list[plan.Run]]:
    """Check everything that the user gave, cheapest first, before any model is loaded."""
    runs = plan.plan_runs(plan.parse_tiers(tiers), toggles)
    if max_new_tokens < 1:
        raise UsageError("bad-length", f"--max-new-tokens is {max_new_tokens}", remedy="use 1 or more")
    plan.check_dtype(dtype)
    model_type = target.read_model_type(model)
    interpreter = target.probe(python)
    setup = Setup(
        interpreter=interpreter,
        model=model.resolve(),
        sources=target.find_sources(interpreter, model_type),
        dtype=dtype,
        seed=SEED,
        max_new_tokens=max_new_tokens,
        cases=plan.CASES,
        implementations=plan.IMPLEMENTATIONS,
    )
    return setup, runs


def _output() -> Console:
    """Standard output; where it is no terminal, wide enough that the table is not folded."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


@contextlib.contextmanager
def _progress(console: Console, steps: int) -> Iterator[Step]:
    """Yield a function that advances a bar on a terminal and does nothing elsewhere."""
    if not console.is_terminal:
        yield lambda text: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading stock", total=steps)
        yield lambda text: bar.update(task, advance=1, description=text)
