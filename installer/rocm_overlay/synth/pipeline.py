"""`overlay synth parallel`: slots in, validated programs out. A slot is one operator combination and its attempts.

What a program is called and what is recorded about it is read from the program: from the calls that were seen while it
ran. What was planned is only what it is held against.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rocm_overlay.errors import UsageError
from rocm_overlay.executor import Executor

from .examine import Program, Rejected, examine, extract
from .journal import Index, Journal
from .kernelbench import Filter
from .providers.base import Feedback, Provider, ProviderError, Reply
from .sampler.arrange import Misfit
from .sampler.catalogue import Catalogue
from .sampler.compose import place
from .sampler.plan import Plan, class_name, derive, sample
from .sandbox.pool import job
from .settings import Settings
from .stats import Stats

MOST_PLANS = 50
# These say something about the combination, not about the answer: another attempt gets other operators.
_OF_THE_PLAN = ("duplicate", "quality")


@dataclass
class Outcome:
    """One attempt: a program that passed, or a category and a message; and what the provider took."""

    plan: Plan
    reply: Reply
    program: Program | None = None
    category: str = ""
    message: str = ""
    answer: dict[str, Any] | None = None
    missing: tuple[str, ...] = ()

    @property
    def requested(self) -> list[str]:
        """What was asked for."""
        return [one.name for one in self.plan.operators]

    @property
    def labels(self) -> dict[str, Any]:
        """What was seen while the program ran."""
        found: dict[str, Any] = (self.answer or {}).get("labels", {})
        return found

    def record(self) -> dict[str, Any]:
        """Return the attempt as the journal keeps it."""
        reply = self.reply
        return {
            "category": self.category,
            "message": self.message[:300],
            "requested": self.requested,
            "missing": list(self.missing),
            "tokens": [reply.input_tokens, reply.output_tokens],
            "requests": reply.requests,
            "cost": reply.cost,
        }

    def feedback(self) -> Feedback | None:
        """What the next attempt should know of this one; None where no answer came."""
        return Feedback(self.reply.text, self.category, self.message, self.missing) if self.reply.text else None


def missing(plan: Plan, labels: dict[str, Any]) -> tuple[str, ...]:
    """Return the operators of a plan that a program does not call, each as often as it lacks.

    What a compound operator is made of belongs to that one: it is no operator of its own.
    """
    wanted = Counter(one.name for one in plan.operators)
    return tuple(sorted((wanted - Counter(labels["operators"])).elements()))


def signature(operators: list[str]) -> str:
    """Return a digest of a combination of operators, whatever their order."""
    return hashlib.sha256(" ".join(sorted(operators)).encode("utf-8")).hexdigest()[:24]


@dataclass
class Judge:
    """Gets programs and judges them. Thread-safe."""

    provider: Provider
    executor: Executor
    settings: Settings
    catalogue: Catalogue
    filter: Filter
    index: Index = field(default_factory=Index)

    def __post_init__(self) -> None:
        self._lists = self.catalogue.described()
        self._known = frozenset(self._lists["names"])

    def attempt(self, plan: Plan, feedback: Feedback | None = None) -> Outcome:
        """Get one program for a plan and judge it."""
        reply = Reply("")
        try:
            reply = self.provider.generate(plan, feedback)
            program = examine(extract(reply.text))
            twin = self.index.twin(shape=program.shape)
            if twin:
                raise Rejected("duplicate", twin)
        except ProviderError as error:
            return Outcome(plan, replace(reply, requests=error.requests), category="provider", message=str(error))
        except Rejected as error:
            return Outcome(plan, reply, category=error.category, message=error.message)
        return self._run(Outcome(plan, reply, program))

    def _run(self, outcome: Outcome) -> Outcome:
        assert outcome.program is not None
        backend = self.settings.compile_backend
        # Eager first, under the strict limits: what misbehaves never reaches the process that may start a compiler.
        first = "none" if backend == "inductor" else backend
        self._ask(outcome, first)
        if not outcome.category:
            self._judge(outcome)
        if not outcome.category and backend != first:
            self._ask(outcome, backend)
        return outcome

    def _ask(self, outcome: Outcome, backend: str) -> None:
        program = outcome.program
        assert program is not None
        labels = outcome.labels
        todo = job(program.name, program.source, self.settings.limits, backend=backend, lists=self._lists)
        answer = self.executor.submit(todo).result()
        outcome.answer = {**answer, "labels": labels} if labels else answer
        if not answer["ok"]:
            outcome.category, outcome.message = answer["category"], answer["message"]

    def _judge(self, outcome: Outcome) -> None:
        """Hold what was seen against the plan, the test set, and what is there already; then name the program."""
        assert outcome.program is not None
        labels = outcome.labels
        outcome.missing = missing(outcome.plan, labels)
        near = self.filter.judge(labels["graph"])
        named = self.named(labels)
        twin = self.index.twin(graph=labels["graph"]["digest"], signature=signature(named))
        if outcome.missing:
            outcome.category = "missing operators"
            outcome.message = f"the program does not call {', '.join(outcome.missing)}"
        elif near or twin:
            outcome.category, outcome.message = ("quality", near) if near else ("duplicate", twin)
        else:
            outcome.program = outcome.program.renamed(class_name(named))

    def named(self, labels: dict[str, Any]) -> list[str]:
        """Return the operators of the lists that a program consists of, in the order in which it calls them."""
        return [name for name in labels["operators"] if name in self._known]

    def record(self, outcome: Outcome) -> dict[str, Any]:
        """Return what is kept about a program that passed."""
        program, labels, answer = outcome.program, outcome.labels, outcome.answer or {}
        assert program is not None
        named = self.named(labels)
        asked = Counter(outcome.requested)
        extra = Counter(named) - asked
        kinds = {kind: len(getattr(outcome.plan, kind)) for kind in ("core", "compound", "supporting")}
        return {
            "name": program.name,
            "source": program.source,
            "operators": named,
            "extra": sorted(extra.elements()),
            "planned": kinds,
            "calls": labels["calls"],
            "signature": signature(named),
            "shape": program.shape,
            "graph": labels["graph"]["digest"],
            "torch": labels["torch"],
            "bridges": outcome.reply.bridges,
            "inputs": answer.get("inputs", []),
            "outputs": answer.get("outputs", []),
        }


def plan_for(catalogue: Catalogue, settings: Settings, *parts: int) -> Plan:
    """Draw a plan whose operators fit together; those that do not are left before anything is counted.

    Raises:
        UsageError: none of many did.
    """
    said = ""
    for number in range(MOST_PLANS):
        plan = sample(catalogue, settings.counts, derive(settings.seed, *parts, *([number] if number else [])))
        try:
            place(plan, catalogue)
        except Misfit as error:
            said = str(error)
        else:
            return plan
    raise UsageError(
        "no-plan",
        f"None of {MOST_PLANS} draws gave operators that fit together; the last one: {said}.",
        remedy="widen the ranges, or correct the conditions in operators_file",
    )


@dataclass
class Run:
    """One run over an output folder."""

    settings: Settings
    judge: Judge
    journal: Journal
    stats: Stats
    show: Callable[[Outcome], None] = lambda outcome: None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._problem: BaseException | None = None

    def restore(self) -> None:
        """Take over what earlier runs finished, and write again the files that are missing."""
        for record in self.journal.records:
            self.stats.count(record, resumed=True)
            if record["status"] == "valid":
                self.journal.write_program(record)

    def work(self) -> None:
        """Fill all slots that are not finished.

        Raises:
            OverlayError: the first problem that makes going on useless; everything finished is kept.
        """
        done = {record["slot"] for record in self.journal.records}
        slots = iter([slot for slot in range(self.settings.num_total_samples) if slot not in done])
        threads = [
            threading.Thread(target=self._drain, args=(slots,), name=f"synth-slot-{number}", daemon=True)
            for number in range(self.settings.num_worker)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        except BaseException:
            self._stop.set()
            raise
        if self._problem is not None:
            raise self._problem

    def _drain(self, slots: Iterator[int]) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    slot = next(slots, None)
                if slot is None:
                    return
                self._fill(slot)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._problem = self._problem or error
            self._stop.set()

    def _fill(self, slot: int) -> None:
        settings = self.settings
        plan = plan_for(self.judge.catalogue, settings, slot)
        outcomes: list[Outcome] = []
        for number in range(settings.max_retries):
            before = outcomes[-1] if outcomes else None
            if before is not None and before.category in _OF_THE_PLAN:
                plan, before = plan_for(self.judge.catalogue, settings, slot, number, 0), None
            elif number:
                plan = replace(plan, seed=derive(settings.seed, slot, number))
            outcome = self.judge.attempt(plan, before.feedback() if before else None)
            outcomes.append(outcome)
            if self._finished(slot, outcomes) or self._stop.is_set():
                return  # finished, or not: then the next run does this slot again
        self._keep({"slot": slot, "status": "failed", "attempts": [one.record() for one in outcomes]}, outcomes[-1])

    def _finished(self, slot: int, outcomes: list[Outcome]) -> bool:
        """Take what a program that passed needs to be alone with, and keep it; False where another was faster."""
        last = outcomes[-1]
        if last.category:
            return False
        with self.judge.index.locked():
            found = self.judge.record(last)
            twin = self.judge.index.twin(graph=found["graph"], signature=found["signature"], shape=found["shape"])
            if twin:
                last.category, last.message = "duplicate", twin
                return False
            found = self._unlike_files(found, last)
            attempts = [one.record() for one in outcomes]
            self._keep({"slot": slot, "status": "valid", "attempts": attempts, **found}, last)
            self.judge.index.note(found)
        return True

    def _unlike_files(self, found: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        """Give a program another name where a file that is not ours has the one that it should get."""
        assert outcome.program is not None
        if not (self.journal.folder / f"{found['name']}.py").exists():
            return found
        outcome.program = outcome.program.renamed(class_name(found["operators"], found["graph"]))
        return {**found, "name": outcome.program.name, "source": outcome.program.source}

    def _keep(self, record: dict[str, Any], last: Outcome) -> None:
        with self._lock:
            self.journal.keep(record)
            if record["status"] == "valid":
                self.journal.write_program(record)
            self.stats.count(record)
            with contextlib.suppress(BrokenPipeError):
                self.show(last)
