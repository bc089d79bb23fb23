"""Backends: kernels that come from outside torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Made = TypeVar("Made")


class Unusable(Exception):
    """A backend cannot serve an op, or run in this process at all; the text says why."""


def attempt(make: Callable[[], Made]) -> Made | str:
    """Return what ``make`` makes, or why it cannot.

    A release of triton or aiter that nobody here has seen may raise anything while its functions are looked up: that
    is a reason to do without it, told and counted like any other, and never an error of the model that runs.
    """
    try:
        return make()
    except Unusable as reason:
        return str(reason)
    except Exception as error:  # noqa: BLE001 - told and counted, as the dispatcher does with what a kernel raises
        text = str(error).strip().splitlines()
        return f"looking it up raised {type(error).__name__}: {text[0][:160] if text else ''}".rstrip(": ")
