"""The default: no network, no key. The sampler's program, in the form in which a language model would answer."""

from __future__ import annotations

from dataclasses import replace

from ..sampler.arrange import Misfit
from ..sampler.catalogue import Catalogue
from ..sampler.compose import compose
from ..sampler.plan import Plan, derive
from .base import Feedback, ProviderError, Reply

_TRIES = 10


class Offline:
    """Composes a program from the plan and its seed; the same plan gives the same text."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def generate(self, plan: Plan, feedback: Feedback | None = None) -> Reply:
        """Return the program in a fenced block.

        Raises:
            ProviderError: the plan's operators could not be placed.
        """
        del feedback  # another attempt has another seed
        said = ""
        for number in range(_TRIES):
            try:
                composed = compose(
                    plan if not number else replace(plan, seed=derive(plan.seed, number)), self.catalogue
                )
            except Misfit as error:
                said = str(error)
            else:
                return Reply(f"```python\n{composed.source}```\n", bridges=composed.bridges)
        raise ProviderError(said, 0)
