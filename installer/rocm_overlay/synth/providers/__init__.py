"""Where programs come from: the sampler of this package, a language model behind one of three clients, or a plugin.

A plugin is an entry point of the group settings.PLUGINS: a function that takes the settings and returns a Provider.
Its name is what ``model_name`` is set to.
"""

from __future__ import annotations

from rocm_overlay.errors import UsageError

from ..sampler.catalogue import Catalogue
from ..settings import PLUGINS, Settings, plugins, provider_names
from .base import Feedback, Provider, ProviderError, Reply, load_prompts

__all__ = ["Feedback", "Provider", "ProviderError", "Reply", "load_prompts", "make"]


def make(settings: Settings, catalogue: Catalogue) -> Provider:
    """Return the provider that ``model_name`` names; its client is imported here, its key is looked up here.

    Raises:
        UsageError: no such provider, no key, no model, no address, or a plugin that cannot be loaded.
        TargetError: the client is not installed.
    """
    if settings.model_name == "gemini":
        from .gemini import Gemini

        return Gemini(settings)
    if settings.model_name in ("openai", "local"):
        from .openai import OpenAI

        return OpenAI(settings)
    if settings.model_name == "offline":
        from .offline import Offline

        return Offline(catalogue)
    found = plugins().get(settings.model_name)
    if found is None:
        known = ", ".join(provider_names())
        raise UsageError(
            "bad-parameter",
            f"model_name is {settings.model_name!r}, expected one of {known}.",
            remedy="set model_name=...",
        )
    try:
        made: Provider = found.load()(settings)
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(
            "bad-plugin",
            f"the provider {found.name} ({found.value}) cannot be loaded: {error}",
            remedy=f"correct or remove the package that registers it in {PLUGINS}",
        ) from error
    return made
