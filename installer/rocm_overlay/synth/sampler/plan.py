"""Which operators one program is asked to have: counts from ranges and p, names by weight, all from one seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .catalogue import KINDS, Catalogue, Operator

Range = tuple[int, int]
DRAWN = ("core", "compound", "supporting")
# How often a kind of value is what a program is about.
_THEMES = {"seq": 8, "image": 6, "vec": 4, "signal": 4, "heads": 2, "volume": 3, "tokens": 3}
_LEADS_TO = {"tokens": ("seq", "vec")}
_OPERATORS_PER_KIND = 6


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
    """Draw a plan: from the smallest count of a range, one more with probability 1 - p, up to the largest.

    A program is about one to three kinds of values, and its operators are those that take them: what else is asked for
    together would be held together by nothing but changes of shape.
    """
    dice = random.Random(seed)
    wanted = [_count(dice, getattr(counts, category), counts.p) for category in DRAWN]
    kinds = list(_themes(dice))
    about = set(kinds[: 1 + min(sum(wanted) // _OPERATORS_PER_KIND, 2)])
    about |= {more for kind in list(about) for more in _LEADS_TO.get(kind, ())}
    drawn = []
    for category, count in zip(DRAWN, wanted, strict=True):
        drawn.append(_draw(catalogue.operators[category], count, dice, about, kinds))
    return Plan(seed, *drawn)


def _count(dice: random.Random, bounds: Range, p: float) -> int:
    count, high = bounds
    while count < high and dice.random() >= p:
        count += 1
    return count


def _themes(dice: random.Random) -> Iterator[str]:
    left = dict(_THEMES)
    while left:
        kind = dice.choices(list(left), list(left.values()))[0]
        del left[kind]
        yield kind


def _fits(one: Operator, about: set[str]) -> bool:
    """Say whether some form takes a kind that the program is about and gives one back that it is about, too."""
    return not one.forms or any(
        about & set(form.inputs) and (form.output is None or form.output in about) for form in one.forms
    )


def _draw(
    operators: Sequence[Operator], count: int, dice: random.Random, about: set[str], kinds: list[str]
) -> tuple[Operator, ...]:
    """Weighted, and without repetition while there are enough; where the kinds give too few, another one is added."""
    chosen: list[Operator] = []
    left = list(operators)
    while len(chosen) < count:
        fitting = [one for one in left if _fits(one, about)]
        if fitting:
            one = dice.choices(fitting, [item.weight for item in fitting])[0]
            left.remove(one)
            chosen.append(one)
        elif left:
            about.add(next(kind for kind in [*kinds, *KINDS] if kind not in about))
        else:
            left = list(operators)
    return tuple(chosen)


def derive(seed: int, *parts: int) -> int:
    """A seed of its own for a slot and an attempt; the same on every machine."""
    text = ":".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big")


def class_name(operators: Sequence[str], salt: str = "") -> str:
    """``SynthModel_Conv2d_ReLU``: the operators in order; where that is long, cut and ended with a hash."""
    words = [name.rpartition(".")[2] for name in operators]
    text = "_".join("".join(c if c.isalnum() else "_" for c in word) for word in words)
    if len(text) <= 90 and not salt:
        return f"SynthModel_{text}"
    digest = hashlib.sha256(f"{text}:{salt}".encode("ascii")).hexdigest()[:8]
    return f"SynthModel_{text[:80].rstrip('_')}_{digest}"
