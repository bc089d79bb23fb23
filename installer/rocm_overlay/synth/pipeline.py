"""`overlay synth parallel`: slots in, validated programs out. A slot is one operator combination and its attempts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rocm_overlay.executor import Executor

from .examine import Program, Rejected, examine, extract
from .journal import Journal
from .providers.base import Provider, ProviderError, Reply
from .sampler import catalogue as catalogue_
from .sampler.plan import Plan, derive, sample
from .sandbox.pool import job
from .settings import Settings
from .stats import Stats


@dataclass
class Outcome:
    """One attempt: a program that passed, or a category and a message; and what the provider took."""

    plan: Plan
    reply: Reply
    program: Program | None = None
    category: str = ""
    message: str = ""
    answer: dict[str, Any] | None = None

    @property
    def operators(self) -> list[str]:
        """What the provider says is in the program, else what was asked for."""
        return list(self.reply.operators) or [one.name for one in self.plan.operators]

    def record(self) -> dict[str, Any]:
        """Return the attempt as the journal keeps it."""
        reply = self.reply
        return {
            "category": self.category,
            "message": self.message[:300],
            "operators": self.operators,
            "tokens": [reply.input_tokens, reply.output_tokens],
            "requests": reply.requests,
            "cost": reply.cost,
        }


class Seen:
    """Signatures, shapes and names that are taken. Thread-safe."""

    def __init__(self, journal: Journal | None = None) -> None:
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self._folder = journal.folder if journal else None
        for record in journal.valid() if journal else ():
            self._taken |= {record["signature"], record["shape"], record["name"]}

    def take(self, program: Program) -> str:
        """Reserve a program; return "" or what of it was taken before."""
        keys = {"operator signature": program.signature, "syntax tree": program.shape, "name": program.name}
        with self._lock:
            for what, key in keys.items():
                if key in self._taken:
                    return f"the {what} occurred before"
            if self._folder is not None and (self._folder / f"{program.name}.py").exists():
                return "a file of this name is there already"
            self._taken |= set(keys.values())
        return ""


def attempt(plan: Plan, provider: Provider, executor: Executor, seen: Seen, settings: Settings) -> Outcome:
    """Get one program for a plan and judge it."""
    reply = Reply("")
    try:
        reply = provider.generate(plan)
        program = examine(extract(reply.text))
        taken = seen.take(program)
        if taken:
            raise Rejected("duplicate", taken)
    except ProviderError as error:
        return Outcome(plan, replace(reply, requests=error.requests), category="provider", message=str(error))
    except Rejected as error:
        return Outcome(plan, reply, category=error.category, message=error.message)
    backend = settings.compile_backend
    answer = executor.submit(job(program.name, program.source, settings.limits, backend="none")).result()
    # Eager first, under the strict limits: what misbehaves never reaches the process that may start a compiler.
    if answer["ok"] and backend != "none":
        answer = executor.submit(job(program.name, program.source, settings.limits, backend=backend)).result()
    if not answer["ok"]:
        return Outcome(plan, reply, program, answer["category"], answer["message"], answer)
    return Outcome(plan, reply, program, answer=answer)


@dataclass
class Run:
    """One run over an output folder."""

    settings: Settings
    provider: Provider
    executor: Executor
    journal: Journal
    stats: Stats
    show: Callable[[Outcome], None] = lambda outcome: None

    def __post_init__(self) -> None:
        self._catalogue = catalogue_.load()
        self._seen = Seen(self.journal)
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
        except BaseException as error:  # noqa: BLE001 - handed to the thread that started this one, which raises it
            with self._lock:
                self._problem = self._problem or error
            self._stop.set()

    def _fill(self, slot: int) -> None:
        settings = self.settings
        plan = sample(self._catalogue, settings.counts, derive(settings.seed, slot))
        outcomes: list[Outcome] = []
        for number in range(settings.max_retries):
            one = replace(plan, seed=derive(settings.seed, slot, number))
            outcomes.append(attempt(one, self.provider, self.executor, self._seen, settings))
            if not outcomes[-1].category or self._stop.is_set():
                break
        if outcomes[-1].category and self._stop.is_set():
            return  # not finished: the next run does this slot again
        record = {"slot": slot, "status": "failed", "attempts": [one.record() for one in outcomes]}
        last = outcomes[-1]
        if not last.category and last.program is not None:
            program, answer = last.program, last.answer or {}
            record.update(
                status="valid",
                name=program.name,
                source=program.source,
                operators=last.operators,
                calls=sorted(set(program.operators)),
                signature=program.signature,
                shape=program.shape,
                inputs=answer.get("inputs", []),
                outputs=answer.get("outputs", []),
            )
        with self._lock:
            self.journal.keep(record)
            if record["status"] == "valid":
                self.journal.write_program(record)
            self.stats.count(record)
            with contextlib.suppress(BrokenPipeError):
                self.show(last)
