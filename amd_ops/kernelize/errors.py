"""The errors of kernelize. All of them name what was asked, what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class KernelizeError(Exception):
    """Root of every error that kernelize raises on purpose."""


class RegistrationError(KernelizeError, ValueError):
    """A registration that can never work: unknown name, cycle, two sources, a bad mode or device."""


class SignatureError(KernelizeError, TypeError):
    """A kernel that cannot stand in for what it replaces: other arguments, a constructor, state of its own."""


class KernelLoadError(KernelizeError, RuntimeError):
    """A kernel whose repository, package, revision or layer cannot be had on this machine."""


class KernelUnavailable(KernelizeError, RuntimeError):
    """A kernel was requested without fallback and does not apply. ``issues`` lists every reason, not the first."""

    def __init__(self, message: str, issues: Iterable[str]) -> None:
        self.issues = tuple(issues)
        super().__init__("\n  - ".join([message, *self.issues]))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return one sentence for an unknown name, with the nearest known one."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(repr(n) for n in names) if names else "none"
    return f"unknown {what} {name!r} (known: {listed}){hint}"
