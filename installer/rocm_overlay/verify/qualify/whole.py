"""Runs in a worker on overlaid code: the whole model under several settings, interleaved; tokens, time and launches.

A round takes one sample of every arm; ``stock`` is taken twice, so that a difference can be held against what no
difference looks like on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from ...worker import Emit
from ..inputs import Inputs, kind_of
from ..other_kinds import arguments

STEPS = 6  # forwards per sample
TOKENS = 8
STOCK, AGAIN = "stock", "stock again"


def compare(
    model: Any, arms: dict[str, dict[str, str]], seed: int, rounds: int, emit: Emit
) -> dict[str, dict[str, Any]]:
    """Return {"seconds": samples of one step, "launches": of one step, "tokens": greedy ids or None} for each arm."""
    import amd_ops
    from rocm_overlay.bench.launches import count

    inputs = Inputs.for_model(model, seed=seed, new_tokens=TOKENS)
    off = {"stock": ",".join(amd_ops.on.__slots__)}
    settings = {STOCK: off, **arms, AGAIN: off}
    found: dict[str, dict[str, Any]] = {}
    for name, chosen in settings.items():
        with amd_ops.override(**chosen):
            step = _stepper(model, inputs)
            step()  # binds, probes, plans
            step()
            launches = count(step)["once"]
            found[name] = {"seconds": [], "launches": launches, "tokens": _tokens(model, inputs)}
    for number in range(1, rounds + 1):
        for name, chosen in settings.items():
            with amd_ops.override(**chosen):
                found[name]["seconds"].append(_sample(_stepper(model, inputs), model.device.type == "cuda"))
        emit("round", number=number)
    return found


def _sample(step: Callable[[], object], cuda: bool) -> float:
    """Return the seconds of one step: of the wall on a GPU, of this process on a CPU."""
    clock = time.perf_counter if cuda else time.process_time
    step()
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    for _ in range(STEPS):
        step()
    if cuda:
        torch.cuda.synchronize()
    return (clock() - start) / STEPS


def _stepper(model: Any, inputs: Inputs) -> Callable[[], object]:
    """Return what makes one decode step behind a prefill, or one forward of a model that does not decode."""
    if kind_of(model) != "causal":
        given = arguments(model, inputs)
        return lambda: model(**given)
    ids = inputs.ids[:1]
    cache = model(input_ids=ids, use_cache=True).past_key_values
    token = ids[:, -1:]
    return lambda: model(input_ids=token, past_key_values=cache, use_cache=True)


def _tokens(model: Any, inputs: Inputs) -> list[Any] | None:
    """Return greedy tokens; None for a model that does not generate from ids alone."""
    if kind_of(model) != "causal":
        return None
    made = model.generate(
        inputs.ids, attention_mask=inputs.mask(left=True), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False
    )
    tokens: list[Any] = made[:, inputs.ids.shape[1] :].tolist()
    return tokens
