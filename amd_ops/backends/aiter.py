"""The only file that knows aiter."""

from __future__ import annotations

from collections.abc import Callable

from .. import device
from ..dispatch import Candidate, Offer, Refusal
from ..toggles import Settings

ARCHES = ("gfx942", "gfx950")


def wanted(toggle: str) -> Callable[[Settings], bool]:
    """Return whether tier aiter was asked for by hand through ``toggle``."""
    return lambda settings: settings.asked(toggle)


def offer(op: str, toggle: str) -> Offer:
    """Return the offer of tier aiter for ``op``, whose family ``toggle`` governs."""

    def ask(settings: Settings) -> Candidate | Refusal:
        if not getattr(settings, toggle.lower()):
            return Refusal(f"{toggle} is off")
        if op == "attention" and settings.force_eager_attention:
            return Refusal("FORCE_EAGER_ATTENTION=1 skips it")
        # USE_AITER_* name aiter: without a device for it the request is broken. USE_OPTIMIZED_OPS asks for whatever
        # is best here.
        named = toggle.startswith("USE_AITER") and settings.asked(toggle)
        found = device.current()
        if found is None:
            return Refusal(device.why_none(), unmet=named)
        if found.arch not in ARCHES:
            return Refusal(
                f"{found.arch} is not among {', '.join(ARCHES)}, where aiter's kernels are known to run", unmet=named
            )
        return Refusal("no adapter", unmet=settings.asked(toggle))

    return ask
