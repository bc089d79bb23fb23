"""One fuzzing session: corpus, target, findings, and the files that they leave behind."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rocm_overlay.errors import UsageError, WriteError
from rocm_overlay.executor import Executor

from ..examine import Program, Rejected, examine, extract
from ..providers.base import ProviderError
from ..providers.offline import Offline
from ..sampler import catalogue
from ..sampler.plan import derive, sample
from ..sandbox.pool import Setup, job, make_executor
from ..settings import Settings
from .shrink import code_lines, shrink

TARGETS = ("ops", "kernelize", "recipes", "compile")
FINDINGS = ("differs", "raises", "mismatch", "compile")
MOST_FINDINGS = 5
_MODULE = "rocm_overlay.synth.fuzz.targets"
_FUNCTION = {"compile": "compiled"}
_NUMBER = re.compile(r"[\d.e+-]*\d")


@dataclass(frozen=True)
class Finding:
    """A program on which the target is wrong: as found, and as small as it could be made."""

    target: str
    name: str
    category: str
    message: str
    source: str
    original: str

    @property
    def lines(self) -> int:
        """Lines of module code of the small program."""
        return code_lines(self.source)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "category": self.category,
            "message": self.message,
            "lines": self.lines,
            "source": self.source,
        }


class Session:
    """Runs programs against one target. ``prelude`` names functions that change the target first (planted faults)."""

    def __init__(
        self, target: str, settings: Settings, prelude: tuple[str, ...] = (), path: tuple[str, ...] = ()
    ) -> None:
        if target not in TARGETS:
            raise UsageError("bad-target", f"There is no target {target!r}.", remedy=f"use one of {', '.join(TARGETS)}")
        self.target, self.settings = target, settings
        self.counts = {"programs": 0, "invalid": 0, "touched": 0, "findings": 0, "alike": 0}
        self._backend = settings.compile_backend if target == "compile" else "none"
        self._setup = Setup(self._backend, (_MODULE, f"{__package__}.trace", *prelude), path)
        self._executor: Executor | None = None

    def __enter__(self) -> Session:
        self._executor = make_executor("process", self.settings.num_worker, self._setup)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.close()

    def fresh_corpus(self) -> list[str]:
        """Sample as many programs as the settings say; no two alike."""
        lists = catalogue.load()
        offline = Offline(lists)
        found: dict[str, str] = {}
        for number in range(20 * self.settings.num_total_samples):
            plan = sample(lists, self.settings.counts, derive(self.settings.seed, number))
            try:
                program = examine(extract(offline.generate(plan).text))
            except (Rejected, ProviderError):
                continue  # a plan that does not fit together; there are others
            found.setdefault(program.shape, program.source)
            if len(found) == self.settings.num_total_samples:
                break
        return list(found.values())

    def ask(self, sources: list[str]) -> list[dict[str, Any]]:
        """Run programs against the target and return the answers in order."""
        return [future() for future in [self._submit(source) for source in sources]]

    def _submit(self, source: str) -> Callable[[], dict[str, Any]]:
        try:
            name = examine_name(source)
        except Rejected as error:
            rejected = {"ok": False, "category": error.category, "message": error.message}
            return lambda: rejected
        assert self._executor is not None
        kind = f"{_MODULE}:{_FUNCTION.get(self.target, self.target)}"
        future = self._executor.submit(self._job(name, source, kind))
        return future.result

    def _job(self, name: str, source: str, kind: str) -> dict[str, Any]:
        # Without the guarded builtins: the overlay of a program imports amd_ops. The kernel's limits stay.
        layers = ["audit", "kernel"]
        return job(name, source, self.settings.limits, kind=kind, backend=self._backend, layers=layers)

    def run(self, sources: list[str], say: Callable[[str], None], most: int = MOST_FINDINGS) -> list[Finding]:
        """Run a corpus and shrink what fails; return one finding per way to fail. Stops when there are ``most``."""
        findings: list[Finding] = []
        known: set[str] = set()
        for source, answer in self._answers(sources):
            self.counts["programs"] += 1
            if answer["ok"]:
                self.counts["touched"] += bool(answer["touched"])
                continue
            if answer["category"] not in FINDINGS:
                self.counts["invalid"] += 1
                say(f"not a finding: {answer['category']}: {answer['message']}")
                continue
            kind = _kind(answer)
            if kind in known:
                self.counts["alike"] += 1
                continue
            known.add(kind)
            say(f"found: {answer['category']}: {answer['message']}; shrinking")
            findings.append(self._shrunk(source, answer))
            if len(findings) == most:
                say(f"stopped after {most} findings")
                break
        self.counts["findings"] = len(findings)
        return findings

    def _answers(self, sources: list[str], ahead: int = 32) -> Iterator[tuple[str, dict[str, Any]]]:
        for start in range(0, len(sources), ahead):
            part = sources[start : start + ahead]
            yield from zip(part, self.ask(part), strict=True)

    def _shrunk(self, source: str, answer: dict[str, Any]) -> Finding:
        name = examine_name(source)
        kind = _kind(answer)

        def still_fails(texts: list[str]) -> int | None:
            same = [not one["ok"] and _kind(one) == kind for one in self.ask(texts)]
            return same.index(True) if True in same else None

        def trace(text: str) -> dict[str, Any] | None:
            assert self._executor is not None
            found = self._executor.submit(self._job(name, text, f"{__package__}.trace:trace")).result()
            return found if found["ok"] else None

        small = shrink(source, name, still_fails, trace)
        last = self.ask([small])[0]
        new = f"SynthModel_{self.target}_{hashlib.sha256(small.encode('utf-8')).hexdigest()[:8]}"
        small = re.sub(rf"\b{name}\b", new, small)
        return Finding(self.target, new, answer["category"], last.get("message", answer["message"]), small, source)


def _kind(answer: dict[str, Any]) -> str:
    """What makes two failures the same: category and variant, and for an error its text without numbers."""
    text = str(answer["message"])
    # Which of two calls shows it depends on how often a class occurs, and that is what shrinking changes.
    text = text.replace(", first call", "").replace(", second call", "")
    variant = text.split(":")[0]
    return f"{answer['category']}: {_NUMBER.sub('#', text) if answer['category'] == 'raises' else variant}"


def examine_name(source: str) -> str:
    """Return the name of a program's class; only the form is checked, small programs may resemble anything.

    Raises:
        Rejected: it has no class of ours, or the policy forbids something in it.
    """
    from ..sandbox import policy

    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise Rejected("syntax", str(error)) from error
    found = policy.violations(tree)
    names = [one.name for one in tree.body if isinstance(one, ast.ClassDef) and one.name.startswith("SynthModel")]
    if found or not names:
        raise Rejected("policy" if found else "structure", "; ".join(found) or "no class SynthModel_...")
    return names[-1]


def save(finding: Finding, folder: Path) -> tuple[Path, Path]:
    """Write the small program and a pytest file that runs it against the target.

    Raises:
        WriteError: the folder cannot be written.
    """
    program = folder / f"{finding.name}.py"
    test = folder / f"test_{finding.name.lower()}.py"
    first = " ".join(finding.message.split())[:90].replace('"', "'").replace("\\", "/")
    try:
        program.write_text(finding.source, encoding="utf-8")
        test.write_text(
            f'"""Found by fuzzing {finding.target}: {first}"""\n\nfrom pathlib import Path\n\n'
            "from rocm_overlay.synth.fuzz import check\n\n\n"
            f"def test_{finding.name.lower()}() -> None:\n"
            f'    assert check("{finding.target}", Path(__file__).with_name("{program.name}")) == ""\n',
            encoding="utf-8",
        )
    except OSError as error:
        raise WriteError(
            "cannot-write", f"{folder}: {error.strerror or error}", remedy="make room, or choose another output_dir"
        ) from error
    return program, test


__all__ = ["FINDINGS", "TARGETS", "Finding", "Program", "Session", "save"]
