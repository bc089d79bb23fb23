"""What can go wrong, said once: a finding (file, line, remedy) and the error that carries findings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..install.transaction import errors

EXIT_OK = 0
EXIT_DIFFERENCE = errors.DIFFERENT
EXIT_USAGE = errors.USAGE
EXIT_CANNOT_WRITE = errors.CANNOT_WRITE
EXIT_TARGET_MISSING = errors.TARGET
EXIT_INTERRUPTED = errors.INTERRUPTED

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One observation about an input; ``line`` counts from 1 and is 0 when the whole file is meant."""

    severity: Severity
    id: str
    path: str
    line: int
    message: str
    remedy: str = ""

    @property
    def place(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path

    def text(self) -> str:
        """Return ``place: severity: message [id] (remedy)``, the form in which every command prints findings."""
        end = f" ({self.remedy})" if self.remedy else ""
        return f"{self.place}: {self.severity}: {self.message} [{self.id}]{end}"

    def as_json(self) -> dict[str, object]:
        return {
            "severity": self.severity,
            "id": self.id,
            "path": self.path,
            "line": self.line,
            "message": self.message,
            "remedy": self.remedy,
        }


@dataclass
class TuneError(Exception):
    """A refusal: nothing was written. ``code`` is the exit status, ``id`` a stable name for programs."""

    id: str
    message: str
    remedy: str = ""
    code: int = EXIT_USAGE
    paths: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())

    def __str__(self) -> str:
        lines = [self.message + (f" ({self.remedy})" if self.remedy else "")]
        lines += [finding.text() for finding in self.findings]
        return "\n".join(lines)


def from_finding(finding: Finding, code: int = EXIT_USAGE) -> TuneError:
    """Return the error of a file that cannot be used at all."""
    return TuneError(finding.id, f"{finding.place}: {finding.message}", finding.remedy, code, (finding.path,))
