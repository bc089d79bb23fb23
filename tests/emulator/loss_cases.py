"""What the kernels of the loss by blocks of the vocabulary are executed on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from amd_ops.backends.triton import cross_entropy
from amd_ops.backends.triton.configs import Config
from amd_ops.backends.vocabulary import Form

from .case import DTYPES, Answer, Case, by_the_launcher, data, target_of


def _loss(words: int, form: Form, dtype: torch.dtype) -> Case:
    """The second of two blocks: the labels are in it, before it, behind it and ignored."""
    rows, first = 4, 100
    labels = torch.tensor([first + 3, first + words - 1, 5, -100])

    def run(via: Any, cut: Config) -> list[Answer]:
        wave = target_of(via.arch).wave
        logits = data(rows, words + 4, dtype=dtype, seed=50, scale=3.0)[:, :words]
        dy = data(rows, dtype=torch.float32, seed=51)
        formed = logits if form.divisor is None else logits / form.divisor
        formed = formed if form.factor is None else formed * form.factor
        tanh = None if form.softcap is None else torch.tanh(formed / form.softcap)
        exact = (formed if tanh is None else tanh * (form.softcap or 1.0)).double()
        total, target = data(rows, dtype=torch.float32, seed=52), torch.zeros(rows)
        sums = torch.logaddexp(total.double(), exact.logsumexp(1)).float()
        column = (labels - first).clamp(0, words - 1)[:, None]
        chosen = exact.gather(1, column)[:, 0] * (torch.arange(rows) < 2)
        cross_entropy.launch_add(logits, labels, first, total, target, form, wave=wave, via=via)
        shares, here = (exact - sums.double()[:, None]).exp(), (torch.arange(words) + first == labels[:, None]).double()
        scale = dy.double()[:, None] * (form.factor or 1.0) / (form.divisor or 1.0)
        bend = 0.0 if tanh is None else tanh.double().square()
        got = cross_entropy.launch_gradient(logits.clone(), labels, first, sums, dy, form, wave=wave, via=via)
        return [
            Answer("log sum exp", total, sums),
            Answer("label", target, chosen.float(), size=torch.full((rows,), form.softcap or 1.0)),
            Answer(
                "gradient",
                got,
                ((shares - here) * (1.0 - bend) * scale).to(dtype),
                (shares + here) * (1.0 + bend) * scale.abs(),
            ),
        ]

    named = "".join(f" {name}" for name, number in form._asdict().items() if number is not None)
    return Case(f"cross_entropy {words}{named}", dtype, by_the_launcher, run, launches=2)


def losses() -> Iterator[Case]:
    """Each form of logits, and a block that a program walks in two steps."""
    for dtype in DTYPES:
        yield _loss(4100, Form(), dtype)
        yield _loss(70, Form(divisor=8.0), dtype)
        yield _loss(1030, Form(factor=0.3), dtype)
        yield _loss(130, Form(2.0, 3.0, 5.0), dtype)
