"""Where programs come from: the sampler of this package, or a language model behind one of three clients."""

from __future__ import annotations

from ..settings import Settings
from .base import Provider


def make(settings: Settings) -> Provider:
    """Return the provider that ``model_name`` names; its client is imported here, its key is looked up here.

    Raises:
        UsageError: no key, no model, no address.
        TargetError: the client is not installed.
    """
    if settings.model_name == "gemini":
        from .gemini import Gemini

        return Gemini(settings)
    if settings.model_name in ("openai", "local"):
        from .openai import OpenAI

        return OpenAI(settings)
    from .offline import Offline

    return Offline()
