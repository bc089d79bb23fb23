"""`overlay doctor`: what keeps an environment slow, broken or misleading. Looks only; `--fix` mends what is safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..session import Options
from ..target import Target
from . import environment, files, fixes, gpu, imports, toggles
from .context import Context, Machine, look
from .registry import NOTE, PROBLEM, WARNING, Finding

__all__ = ["NOTE", "PROBLEM", "WARNING", "Examination", "Finding", "Machine", "examine"]

Check = Callable[[Context], Iterator[Finding]]
_CHECKS: tuple[Check, ...] = (*environment.CHECKS, *files.CHECKS, *gpu.CHECKS, *toggles.CHECKS)


@dataclass(frozen=True)
class Examination:
    """What was found, and what was done about it: (finding id, what was done or would be done)."""

    target: Target | None
    state: str | None
    findings: tuple[Finding, ...]
    fixed: tuple[tuple[str, str], ...] = ()
    dry_run: bool = False

    @property
    def code(self) -> int:
        """The exit code: 1 when a problem is left."""
        mended = set() if self.dry_run else {name for name, _ in self.fixed}
        return int(any(one.severity == PROBLEM and one.id not in mended for one in self.findings))


def examine(
    options: Options,
    *,
    fix: bool = False,
    imports: bool = False,
    launcher: str | None = None,
    machine: Machine | None = None,
) -> Examination:
    """Run every check. ``imports`` also imports the overlaid models in a child process of the target's interpreter."""
    context = look(options, machine or Machine.this(), launcher)
    found = [finding for check in _CHECKS for finding in check(context)]
    if imports:
        found += list(_imports(context))
    done = fixes.mend(context, found) if fix else ()
    state = context.status.state.value if context.status is not None else None
    order = (PROBLEM, WARNING, NOTE)
    findings = tuple(sorted(found, key=lambda one: order.index(one.severity)))
    return Examination(context.target, state, findings, done, options.dry_run)


def _imports(context: Context) -> Iterator[Finding]:
    yield from imports.check(context)
