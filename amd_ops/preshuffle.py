"""Shuffled weights: the toggle exists, the layout does not yet. A request for it is told, not dropped."""

from __future__ import annotations

from . import toggles
from .dispatch import Site

_site = Site("preshuffle", "shuffled", lambda settings: settings.asked("USE_PRESHUFFLE"))


def _tell() -> None:
    if toggles.settings().use_preshuffle:
        _site.declined("shuffled weights are not part of this release, the plain ones are used")


toggles.when_settings_change(_tell)
