"""The runs of a verification over the workers of an executor: one job per tier, each with a stock reference of its own.

The reference is recorded where its tier runs, since only stock on the same machine can be equal bit by bit. What a job
gave is kept in a journal, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..executor import Answer, Executor, answers
from ..install.transaction.errors import UsageError, WriteError
from ..journal import Journal, NotAJournalError
from ..progress import Step
from .plan import Run
from .workers import Results, RunResult, Setup, groups, run_all

SCHEMA = "amd-overlay.verify.jobs/1"


def open_journal(path: Path) -> Journal:
    """Open the answers of finished jobs. Each names all that went into it, so any plan may go on with any of them."""
    with _said(path):
        return Journal(path, SCHEMA, {})


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except NotAJournalError as error:
        message = f"{path} is not what a verification keeps: {error}"
        raise UsageError("no-journal", message, remedy="name another folder with --work", paths=[path]) from None
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise WriteError("no-journal", message, remedy="name another folder with --work") from None


def run_spread(setup: Setup, runs: list[Run], step: Step, executor: Executor, journal: Journal | None) -> Results:
    """Verify every tier somewhere and merge what came back, in the order of the plan."""
    jobs = {job_of(setup, group): group for group in groups(runs)}
    done: dict[str, Answer] = {entry["job"]: entry["answer"] for entry in (journal.records if journal else ())}
    waiting = [name for name in jobs if name not in done]
    for number, answer in answers(executor, [(verify, setup, jobs[name]) for name in waiting]):
        name = waiting[number]
        if not answer["ok"]:
            answer = _lost(jobs[name], answer["message"])
        done[name] = answer
        # What crashed is not kept: the next run tries it again.
        if journal is not None and all(run["status"] != "crashed" for run in answer["runs"]):
            with _said(journal.path):
                journal.append({"job": name, "answer": answer})
        step(f"{jobs[name][-1].tier}: done")
    return merged([done[name] for name in jobs])


def job_of(setup: Setup, runs: list[Run]) -> str:
    """Identify a job: whatever could change its answer."""
    parts = {
        "interpreter": setup.interpreter.as_json(),
        "model": str(setup.model),
        "sources": [source.as_json() for source in setup.sources],
        "how": [setup.dtype, setup.seed, setup.max_new_tokens, setup.cases, setup.implementations, setup.seeded],
        "runs": [run.as_json() for run in runs],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def verify(setup: Setup, runs: list[Run]) -> Answer:
    """The job, on the machine that got it."""
    return {"ok": True, **_plain(run_all(setup, runs, lambda text: None))}


def merged(found: list[Answer]) -> Results:
    """Put the answers of all jobs into one."""
    whole = [answer for answer in found if answer["ok"]]
    results = Results(runs=[_run(run) for answer in found for run in answer["runs"]])
    if whole:
        first = whole[0]
        results.device = ", ".join(dict.fromkeys(answer["device"] for answer in whole))
        results.loaded, results.nan_weights = first["loaded"], first["nan_weights"]
        results.compared, results.not_compared = first["compared"], first["not_compared"]
    return results


def _lost(runs: list[Run], message: str) -> Answer:
    return {"ok": False, "runs": [asdict(RunResult(run, message=message)) for run in runs]}


def _plain(results: Results) -> dict[str, Any]:
    return {**vars(results), "runs": [asdict(result) for result in results.runs]}


def _run(values: dict[str, Any]) -> RunResult:
    return RunResult(**{**values, "run": Run(**values["run"])})
