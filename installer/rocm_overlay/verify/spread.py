"""The runs of a verification over the workers of an executor: one job per tier, each with a stock reference of its own.

The reference is recorded where its tier runs, since only stock on the same machine can be equal bit by bit. What a job
gave is kept in a journal, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..console import Step, Steps
from ..errors import UsageError, WriteError
from ..executor import Answer, Executor, answers
from ..journal import Journal, NotAJournalError, Reuse
from .plan import Run
from .workers import Results, RunResult, Setup, groups, run_all

SCHEMA = "amd-overlay.verify.jobs/2"


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


@dataclass(frozen=True)
class Kept:
    """The answers of earlier runs that may stand for jobs of this one, and the journal that takes new ones."""

    journal: Journal
    fresh: bool = False  # what is there is not used; what comes replaces it

    def answers(self, jobs: Iterable[str]) -> dict[str, tuple[Answer, float]]:
        """Return (answer, time) of the jobs that are finished; of several the newest."""
        known = zip(self.journal.records, self.journal.times, strict=True)
        found = {record["job"]: (record["answer"], at) for record, at in known if not self.fresh}
        return {job: found[job] for job in jobs if job in found}

    def keep(self, job: str, answer: Answer) -> None:
        """Keep the answer of a job."""
        with _said(self.journal.path):
            self.journal.append({"job": job, "answer": answer})


def run_spread(setup: Setup, runs: list[Run], step: Step, executor: Executor, kept: Kept | None) -> Results:
    """Verify every tier somewhere and merge what came back, in the order of the plan."""
    if kept is None:
        jobs = {group[-1].tier: group for group in groups(runs)}
    else:
        jobs = {job_of(setup, group): group for group in groups(runs)}
    known = kept.answers(jobs) if kept else {}
    done = {name: answer for name, (answer, _) in known.items()}
    waiting = [name for name in jobs if name not in done]
    for number, answer in answers(executor, [(verify, setup, jobs[name]) for name in waiting]):
        name = waiting[number]
        if not answer["ok"]:
            answer = _lost(jobs[name], answer["message"])
        done[name] = answer
        # What crashed is not kept: the next run tries it again.
        if kept is not None and all(run["status"] != "crashed" for run in answer["runs"]):
            kept.keep(name, answer)
        step(f"{jobs[name][-1].tier}: done")
    results = merged([done[name] for name in jobs])
    if known:
        results.reused = Reuse(len(known), len(jobs), max(at for _, at in known.values()))
    return results


def job_of(setup: Setup, runs: list[Run]) -> str:
    """Identify a job by whatever could change its answer."""
    assert setup.subject is not None, "results are kept of a subject that is known"
    names = ("dtype", "seed", "max_new_tokens", "cases", "implementations", "seeded")
    plan = {name: getattr(setup, name) for name in names}
    return setup.subject.planned({**plan, "runs": [run.as_json() for run in runs]}).digest


def verify(setup: Setup, runs: list[Run]) -> Answer:
    """The job, on the machine that got it."""
    return {"ok": True, **_plain(run_all(setup, runs, Steps()))}


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
    told = {name: value for name, value in vars(results).items() if name != "reused"}
    return {**told, "runs": [asdict(result) for result in results.runs]}


def _run(values: dict[str, Any]) -> RunResult:
    return RunResult(**{**values, "run": Run(**values["run"])})
