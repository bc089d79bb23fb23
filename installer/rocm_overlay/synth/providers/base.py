"""What a provider is, and what all that talk to a server share: prompts, keys, pauses, retries, accounts."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

from rocm_overlay.errors import BundleError, TargetError, UsageError

from .. import toml
from ..sampler.catalogue import DATA, Operator
from ..sampler.plan import Plan

MOST_TRIES = 6
LONGEST_PAUSE = 60.0
# A server may ask for more patience than we would have by ourselves, but not for any amount of it.
LONGEST_ASKED = 600.0
_LONGEST_SHOWN = 6000


@dataclass(frozen=True)
class Reply:
    """A provider's answer, and what it took. ``bridges``: how many changes of shape a composer had to add."""

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    cost: float = 0.0
    bridges: int = 0


@dataclass(frozen=True)
class Feedback:
    """An earlier answer to the same plan and why it was rejected: category, message, operators that it lacks."""

    answer: str
    category: str
    message: str
    missing: tuple[str, ...] = ()

    def text(self) -> str:
        """Say it to whoever wrote the answer."""
        said = f"Your answer was rejected ({self.category}): {self.message}"
        if self.missing:
            said += f"\nThese operators must be called in forward, and were not: {', '.join(self.missing)}."
        return said + "\nWrite the whole corrected file, in one Python code block."


class Provider(Protocol):
    """Writes a program for a plan. Called from several threads."""

    def generate(self, plan: Plan, feedback: Feedback | None = None) -> Reply:
        """Return an answer. ``feedback`` is about the last attempt at the same plan.

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
                if error.pause is not None and error.pause > LONGEST_ASKED:
                    said = f"{error}, and asks to wait {error.pause:.0f} s, more than {LONGEST_ASKED:.0f}"
                    raise ProviderError(said, attempt) from error
                backoff = min(0.5 * 2 ** (attempt - 1) * random.uniform(0.5, 1.0), LONGEST_PAUSE)
                self.sleep(backoff if error.pause is None else error.pause)
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
    return TargetError("no-client", f"{use} needs {package}.", remedy=f"run `pip install {package}`")


@dataclass(frozen=True)
class Prompts:
    """A prompt template: the text of the system, and a jinja2 template for the user's."""

    path: Path
    system: str
    user: str

    def render(self, plan: Plan) -> tuple[str, str]:
        """Return the system and the user text for a plan.

        Raises:
            UsageError: the template is no jinja2, or names a variable that there is not.
        """
        try:
            from jinja2 import StrictUndefined, Template, TemplateError
        except ImportError as error:
            raise no_client("jinja2", "Rendering prompts") from error
        values = {kind: [one.name for one in getattr(plan, kind)] for kind in ("core", "compound", "supporting")}
        try:
            user = Template(self.user, undefined=StrictUndefined).render(name=plan.label, **values)
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise UsageError(
                "bad-prompts",
                f"{self.path}: the text `user` cannot be rendered: {error}.",
                remedy="correct it; the variables are name, core, compound, supporting",
                paths=[self.path],
            ) from error
        return self.system, user


def load_prompts(name: str, folder: Path | None = None) -> Prompts:
    """Return a prompt template, by name or by the path of a TOML file with ``system`` and ``user``.

    Args:
        name: that of a file of ``folder``, else of one of ours, or a path that ends in .toml.
        folder: the user's prompts.

    Raises:
        UsageError: there is none of that name, or it cannot be used.
    """
    folders = [*([folder] if folder else []), DATA / "prompts"]
    found = [Path(name)] if name.endswith(".toml") else [one / f"{name}.toml" for one in folders]
    path = next((one for one in found if one.is_file()), None)
    if path is None:
        known = ", ".join(sorted({one.stem for place in folders for one in place.glob("*.toml")}))
        raise UsageError("no-prompts", f"There are no prompts {name!r}.", remedy=f"use one of {known}, or a .toml file")
    try:
        table = toml.read(path)
    except BundleError as error:
        raise UsageError("bad-prompts", str(error), remedy="correct the file", paths=[path]) from error
    if not all(isinstance(table.get(key), str) for key in ("system", "user")):
        raise UsageError("bad-prompts", f"{path} lacks the text `system` or `user`.", remedy="add it", paths=[path])
    made = Prompts(path, table["system"], table["user"])
    example = (Operator("nn.Linear", "core"),)
    made.render(Plan(0, example, example, example))  # what is wrong with it shows before any work
    return made


def conversation(prompts: Prompts, plan: Plan, feedback: Feedback | None) -> tuple[str, list[tuple[str, str]]]:
    """Return the system's text and the turns, ``(user or assistant, text)``: after a rejected answer, it and why."""
    system, user = prompts.render(plan)
    turns = [("user", user)]
    if feedback is not None:
        turns += [("assistant", feedback.answer[:_LONGEST_SHOWN]), ("user", feedback.text())]
    return system, turns
