"""The default: no network, no key. The sampler's program, in the form in which a language model would answer."""

from __future__ import annotations

from ..sampler import catalogue
from ..sampler.compose import compose
from ..sampler.plan import Plan
from .base import Reply


class Offline:
    """Composes a program from the plan and its seed; the same plan gives the same text."""

    def __init__(self) -> None:
        self.catalogue = catalogue.load()

    def generate(self, plan: Plan) -> Reply:
        """Return the program in a fenced block."""
        composed = compose(plan, self.catalogue)
        return Reply(f"```python\n{composed.source}```\n", operators=composed.operators)
