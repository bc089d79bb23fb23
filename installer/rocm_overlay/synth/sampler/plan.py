"""Which operators one program is asked to have: counts from ranges and p, names by weight, all from one seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .catalogue import Catalogue, Operator

Range = tuple[int, int]


@dataclass(frozen=True)
class Counts:
    """How many operators of each category (smallest, largest), and p: the smaller, the more operators."""

    core: Range = (1, 5)
    compound: Range = (0, 4)
    supporting: Range = (2, 10)
    p: float = 0.25


@dataclass(frozen=True)
class Plan:
    """What one program must contain, and the seed of everything random about it."""

    seed: int
    core: tuple[Operator, ...]
    compound: tuple[Operator, ...]
    supporting: tuple[Operator, ...]

    @property
    def operators(self) -> tuple[Operator, ...]:
        """All of them."""
        return (*self.core, *self.compound, *self.supporting)

    @property
    def label(self) -> str:
        """A class name made of the plan's operators, for prompts: the sampler names its programs by what they use."""
        return class_name([one.name for one in self.operators], str(self.seed))


def sample(catalogue: Catalogue, counts: Counts, seed: int) -> Plan:
    """Draw a plan: from the smallest count of a range, one more with probability 1 - p, up to the largest."""
    dice = random.Random(seed)
    drawn = []
    for category in ("core", "compound", "supporting"):
        low, high = getattr(counts, category)
        count = low
        while count < high and dice.random() >= counts.p:
            count += 1
        drawn.append(_draw(catalogue.operators[category], count, dice))
    return Plan(seed, *drawn)


def _draw(operators: Sequence[Operator], count: int, dice: random.Random) -> tuple[Operator, ...]:
    """Weighted, and without repetition while there are enough."""
    left = list(operators)
    chosen = []
    for _ in range(count):
        left = left or list(operators)
        one = dice.choices(left, [item.weight for item in left])[0]
        left.remove(one)
        chosen.append(one)
    return tuple(chosen)


def derive(seed: int, *parts: int) -> int:
    """A seed of its own for a slot and an attempt; the same on every machine."""
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big")


def class_name(operators: Sequence[str], salt: str = "") -> str:
    """``SynthModel_Conv2d_ReLU``: the operators in order; where that is long, cut and ended with a hash."""
    words = [name.rpartition("nn.")[2].rpartition("F.")[2].rpartition("torch.")[2] for name in operators]
    text = "_".join("".join(c if c.isalnum() else "_" for c in word) for word in words)
    if len(text) <= 90 and not salt:
        return f"SynthModel_{text}"
    digest = hashlib.sha256(f"{text}:{salt}".encode("ascii")).hexdigest()[:8]
    return f"SynthModel_{text[:80].rstrip('_')}_{digest}"
