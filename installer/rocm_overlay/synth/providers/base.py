"""What a provider is, and what all that talk to a server share: prompts, keys, pauses, retries, accounts."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from rocm_overlay.install.transaction.errors import TargetError, UsageError

from .. import toml
from ..sampler.catalogue import DATA
from ..sampler.plan import Plan

MOST_TRIES = 6
LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class Reply:
    """A provider's answer, and what it took. ``operators``: those that are surely in it, where the provider knows."""

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    cost: float = 0.0
    operators: tuple[str, ...] = ()


class Provider(Protocol):
    """Writes a program for a plan. Called from several threads."""

    def generate(self, plan: Plan) -> Reply:
        """Return an answer.

        Raises:
            ProviderError: no usable answer came; the attempt counts as failed.
            OverlayError: nothing will ever come (a refused key): the run stops.
        """


class ProviderError(Exception):
    """The server gave no usable answer, after all retries. ``requests`` were made."""

    def __init__(self, message: str, requests: int = 1) -> None:
        super().__init__(message)
        self.requests = requests


class Transient(Exception):
    """A failure that may pass: too many requests, a server error, a lost connection, a slow answer."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


@dataclass
class Pace:
    """Lets at most so many requests per minute start, over all threads; 0 means as many as come."""

    per_minute: float
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _next: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wait(self) -> None:
        """Return when the next request may start."""
        if not self.per_minute:
            return
        with self._lock:
            now = self.clock()
            start = max(now, self._next)
            self._next = start + 60.0 / self.per_minute
        if start > now:
            self.sleep(start - now)


@dataclass
class Retry:
    """Exponential backoff with jitter; a server's own Retry-After goes first."""

    pace: Pace
    tries: int = MOST_TRIES
    sleep: Callable[[float], None] = time.sleep

    def call(self, request: Callable[[], Any]) -> tuple[Any, int]:
        """Return what ``request`` returns and how many tries it took.

        Raises:
            ProviderError: it failed as often as allowed.
        """
        for attempt in range(1, self.tries + 1):
            self.pace.wait()
            try:
                return request(), attempt
            except Transient as error:
                if attempt == self.tries:
                    raise ProviderError(f"{error} ({attempt} tries)", attempt) from error
                pause = 0.5 * 2 ** (attempt - 1) * random.uniform(0.5, 1.0) if error.pause is None else error.pause
                self.sleep(min(pause, LONGEST_PAUSE))
        raise AssertionError("unreachable")


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header (a number or a date), or None."""
    if not value:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass  # the other form of the header is a date
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def find_key(names: tuple[str, ...], *, needed: bool) -> str:
    """Return the first of some variables from the environment, or from .env in the current folder; never print it.

    Raises:
        UsageError: there is none and one is needed.
    """
    values: dict[str, str | None] = {}
    if Path(".env").is_file():
        try:
            from dotenv import dotenv_values
        except ImportError as error:
            raise no_client("python-dotenv", "reading .env") from error
        values = dict(dotenv_values(".env"))
    for name in names:
        found = os.environ.get(name) or values.get(name)
        if found:
            return found
    if not needed:
        return "none"
    raise UsageError(
        "missing-key",
        f"There is no key: {' or '.join(names)} is set neither in the environment nor in .env.",
        remedy=f"export {names[0]}=..., or write it into .env, or use model_name=offline",
    )


def no_client(package: str, use: str) -> TargetError:
    """The error of a client library that is not installed."""
    return TargetError(
        "no-client", f"{use} needs {package}.", remedy="run `pip install 'transformers-rocm-overlay[synth]'`"
    )


@cache
def load_prompts(name: str) -> dict[str, Any]:
    """Return a prompt template, by name or by the path of a TOML file with ``system`` and ``user``.

    Raises:
        UsageError: there is none of that name, or it lacks a text.
    """
    path = Path(name) if name.endswith(".toml") else DATA / "prompts" / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in (DATA / "prompts").glob("*.toml")))
        raise UsageError("no-prompts", f"There are no prompts {name!r}.", remedy=f"use one of {known}, or a .toml file")
    table = toml.read(path)
    if not all(isinstance(table.get(key), str) for key in ("system", "user")):
        raise UsageError("bad-prompts", f"{path} lacks the text `system` or `user`.", remedy="add it")
    return table


def prompt(name: str, plan: Plan) -> tuple[str, str]:
    """Return the system and the user text for a plan."""
    try:
        from jinja2 import StrictUndefined, Template
    except ImportError as error:
        raise no_client("jinja2", "Rendering prompts") from error
    table = load_prompts(name)
    values = {kind: [one.name for one in getattr(plan, kind)] for kind in ("core", "compound", "supporting")}
    user = Template(table["user"], undefined=StrictUndefined).render(name=plan.label, **values)
    return table["system"], user
