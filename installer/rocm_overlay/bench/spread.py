"""Shapes of work over the machines of a cluster: one job per shape, with every cell and round that is compared in it.

Stock and what is compared with it stay on one machine, one after the other, or their ratio would tell of two machines.
A shape is kept when it is whole, and the same command goes on with those that are missing.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..console import Step
from ..executor import Answer, Executor, answers
from .memory import check_memory
from .process import Process
from .runner import Journal, Setup, ask_size, run_all

SIZE = "size.json"


def run_spread(setup: Setup, journal: Journal, step: Step, executor: Executor) -> tuple[list[Process], dict[str, Any]]:
    """Measure every shape that is not whole yet; return all processes, and what `ask_size` told of the model."""
    done = journal.done()
    shapes = list(dict.fromkeys(cell.against for cell in setup.cells))
    parts = [_part(setup, shape) for shape in shapes]
    missing = [part for part in parts if not _whole(part, done.keys())]
    for number, answer in answers(executor, [(measure, part) for part in missing]):
        step(f"{missing[number].cells[0].against}: {'done' if answer['ok'] else answer['message']}")
        for process in _taken(answer, journal.folder) if answer["ok"] else _lost(missing[number], answer["message"]):
            done[process.cell, process.round] = process
            if answer["ok"]:
                journal.keep(process)
        if answer["ok"]:
            (journal.folder / SIZE).write_text(json.dumps(answer["size"]))
    path = journal.folder / SIZE
    return list(done.values()), json.loads(path.read_bytes()) if path.exists() else ask_size(setup)


def measure(setup: Setup) -> Answer:
    """The job: a whole run in a folder of its own, on the machine that got it."""
    size = ask_size(setup)
    check_memory(size, setup)
    with tempfile.TemporaryDirectory(prefix="overlay-bench-") as name:
        processes = run_all(setup, Journal(Path(name), setup), lambda text: None)
        for process in processes:
            process.device = size["device_name"]
        outputs = {path.name: path.read_bytes() for path in Path(name, "values").glob("*")}
        return {"ok": True, "size": size, "processes": [vars(process) for process in processes], "outputs": outputs}


def _part(setup: Setup, shape: str) -> Setup:
    return dataclasses.replace(setup, cells=[cell for cell in setup.cells if cell.against == shape])


def _whole(part: Setup, done: Any) -> bool:
    return all((cell.id, round) in done for cell in part.cells for round in range(part.rounds))


def _taken(answer: Answer, folder: Path) -> list[Process]:
    """The processes of a job, with their outputs in this run's folder."""
    values = folder / "values"
    values.mkdir(exist_ok=True)
    for name, content in answer["outputs"].items():
        (values / name).write_bytes(content)
    processes = [Process(**one) for one in answer["processes"]]
    for process in processes:
        process.values = str(values / Path(process.values).name) if process.values else None
    return processes


def _lost(part: Setup, message: str) -> Sequence[Process]:
    return [Process(cell.id, round, message=message) for cell in part.cells for round in range(part.rounds)]
