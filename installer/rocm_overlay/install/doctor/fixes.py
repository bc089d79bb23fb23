"""`--fix`: what can be mended without losing anything. Everything goes through the transaction's own doors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from ..hook import installed
from ..operations import recover_only
from ..session import lock_seconds
from ..transaction.bytecode import purge
from ..transaction.lock import locked
from .context import Context
from .registry import Finding


def mend(c: Context, found: Iterable[Finding]) -> tuple[tuple[str, str], ...]:
    """Mend every fixable finding, or with --dry-run say how; return (id, what was done)."""
    done = []
    for finding in found:
        if finding.kind.fixable:
            done.append((finding.id, _MENDERS[finding.id](c, finding)))
    return tuple(done)


def _recover(c: Context, finding: Finding) -> str:
    if c.options.dry_run:
        return "would finish the open transaction and remove temporary files"
    outcome = recover_only(dataclasses.replace(c.options, dry_run=False))
    if outcome.recovered is None:
        return "; ".join(outcome.notes) or "nothing was left to do"
    return f"{outcome.recovered.kind} was {outcome.recovered.outcome}"


def _purge(c: Context, finding: Finding) -> str:
    assert c.place is not None
    stems = sorted({_module(c, Path(path)) for path in finding.paths})
    if c.options.dry_run:
        return f"would remove compiled files of {', '.join(stems)}"
    with locked(c.place, lock_seconds()):
        for path in stems:
            purge(c.place, path)
    return f"removed compiled files of {', '.join(stems)}"


def _module(c: Context, cached: Path) -> str:
    assert c.target is not None
    folder = cached.parent.parent.relative_to(c.target.package).as_posix()
    return f"{folder}/{cached.name.partition('.')[0]}.py"


def _unhook(c: Context, finding: Finding) -> str:
    assert c.place is not None
    path = installed.remove(c.place, dry_run=c.options.dry_run, force=True)
    return f"{'would remove' if c.options.dry_run else 'removed'} {path}"


_MENDERS: dict[str, Callable[[Context, Finding], str]] = {
    "interrupted": _recover,
    "stray-temporaries": _recover,
    "stale-bytecode": _purge,
    "hook-broken": _unhook,
}
