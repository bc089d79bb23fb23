"""The first forwards of a fresh model come from eight threads at once: no exception, and everybody gets stock's logits.

What is made on first use (packed matrices, bindings of ops, mask plans, plans of decode steps, probes of variants,
rewritten forwards) is published once and whole.
"""

from __future__ import annotations

import copy
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

import amd_ops
from amd_ops import masks
from tests.doubles.aiter import fake_aiter
from tests.parity import twins

ON: dict[str, Any] = {"use_aiter_attention": 1, "use_optimized_ops": 1, "use_fused_projections": 1}
THREADS, MODELS = 8, 200
IDS = torch.randint(5, 100, (2, 7), generator=torch.Generator().manual_seed(3))
MASK = torch.ones_like(IDS)
MASK[0, :3] = 0
ROUTES = ("overlaid", "kernelized", "on the double of aiter")


@functools.cache
def pair(architecture: str, dtype: str) -> tuple[twins.Pair, list[torch.Tensor]]:
    """Both models, and stock's outputs."""
    sizes: dict[str, Any] = {}
    if dtype == "bfloat16":  # a second layer would add to the distance that rounding makes
        sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_hidden_layers": 1}
    if architecture == "mixtral":  # with all experts in use no near tie of the router flips
        sizes["num_experts_per_tok"] = 4
    made = twins.new_pair(architecture, dtype, **sizes)
    return made, outputs(made.stock)


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def outputs(model: Any) -> list[torch.Tensor]:
    """A padded prefill and one planned step behind it."""
    with torch.no_grad():
        first = model(IDS, attention_mask=MASK, use_cache=True)
        longer = torch.cat([MASK, MASK[:, :1] | 1], 1)
        step = model(IDS[:, :1], attention_mask=longer, past_key_values=first.past_key_values, use_cache=True)
    return [first.logits[MASK.bool()], step.logits]


def together(work: Callable[[], Any]) -> list[Any]:
    """Run ``work`` in all threads at the same moment; what went wrong in one is raised here."""
    barrier, found, wrong = threading.Barrier(THREADS), [], []

    def one() -> None:
        barrier.wait()
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where pytest sees it
            wrong.append(error)

    threads = [threading.Thread(target=one) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]
    assert len(found) == THREADS
    return found


def first_forwards(route: str, architecture: str) -> None:
    dtype = "bfloat16" if route == "on the double of aiter" else "float32"
    (both, wanted), tolerance = pair(architecture, dtype), 4e-2 if dtype == "bfloat16" else 1e-4
    model = copy.deepcopy(both.stock if route == "kernelized" else both.overlay)
    with fake_aiter("v0.1.20.post1", "gfx942", 304) if dtype == "bfloat16" else nullcontext():
        masks._entries.clear()
        amd_ops.refresh()  # nothing is bound, probed or planned
        with amd_ops.override(**ON, **({"use_aiter_gemm": 1} if dtype == "bfloat16" else {})):
            if route == "kernelized":
                together(lambda: amd_ops.kernelize_model(model))
            for found in together(lambda: [outputs(model), outputs(model)]):
                for want, first, second in zip(wanted, *found, strict=True):
                    for one in (first, second):
                        assert float((one - want).abs().max() / want.abs().max()) < tolerance


def rounds(models: int) -> Iterator[tuple[str, str]]:
    cells = [(route, architecture) for route in ROUTES for architecture in ("llama", "mixtral", "qwen3")]
    return (cells[number % len(cells)] for number in range(models))


def test_twenty_fresh_models() -> None:
    for route, architecture in rounds(20):
        first_forwards(route, architecture)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_two_hundred_fresh_models() -> None:
    for route, architecture in rounds(MODELS):
        first_forwards(route, architecture)
