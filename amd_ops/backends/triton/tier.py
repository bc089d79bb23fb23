"""Tier triton: which ops it serves, asked at binding. Everything that imports triton is imported from here, late."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ... import toggles
from ...dispatch import Offer, Offered, Refusal
from ...toggles import Settings
from .. import attempt
from . import providers
from .target import Target, find

_found: Target | str | None = None


def wanted(toggle: str) -> Callable[[Settings], bool]:
    """Return whether a fast tier was asked for by hand through ``toggle``: then a call that triton declines is told."""
    return lambda settings: settings.asked(toggle)


def offer(op: str, toggle: str, reference: Callable[..., Any]) -> Offer:
    """Return the offer of tier triton for ``op``: its family's ``toggle``, and the eager function that probes compare
    with.

    USE_OPTIMIZED_OPS asks for the best there is, so a machine without Triton breaks no request.
    """

    def ask(settings: Settings) -> Refusal | tuple[Offered, ...]:
        if not getattr(settings, toggle.lower()):
            return Refusal(f"{toggle} is off")
        if toggle == "USE_AITER_ATTENTION" and settings.force_eager_attention:
            return Refusal("FORCE_EAGER_ATTENTION=1 skips it")
        found = _target()
        if isinstance(found, str):
            return Refusal(found)
        chosen = [providers.offered(name, op, reference, found) for name in settings.triton_providers]
        if "ours" not in settings.triton_providers:
            chosen.append(Refusal("AMD_OPS_TRITON_PROVIDERS leaves our own kernels out"))
        return tuple(chosen)

    return ask


def _target() -> Target | str:
    global _found
    if _found is None:
        _found = attempt(find)
    return _found


def notes() -> dict[str, int]:
    """What went wrong beside the calls themselves (a cache of cuts that cannot be read), by reason."""
    tuning = sys.modules.get(f"{__package__}.tuning")
    return dict(tuning.notes) if tuning is not None else {}


def forget() -> None:
    """Drop the target and every verdict."""
    global _found
    _found = None
    providers.forget()


toggles.when_refreshed(forget)
