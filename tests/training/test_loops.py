"""Training by hand: a preference loss on log-probabilities, scaled fp16, and gradients of torch.func."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import amd_ops
from tests.parity import twins

from .test_models import OFF, apart, batch, clean, loss_of
from .test_tools import ON, calls

__all__ = ["clean"]  # a fixture of this file, too
pytestmark = pytest.mark.filterwarnings("ignore::amd_ops.DeclinedWarning")


def log_probability(model: Any, ids: Tensor) -> Tensor:
    """Of each row: from the logits of a forward that has no labels."""
    logits = model(ids, use_cache=False).logits[:, :-1]
    return F.log_softmax(logits.float(), -1).gather(-1, ids[:, 1:, None]).sum((1, 2))


def preferences(model: Any) -> None:
    """A direct preference loss against a frozen copy, as TRL's trainer computes it: two forwards before a backward."""
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.SGD(model.parameters(), 1e-2)
    for seed in range(3):
        chosen, rejected = batch(seed)["input_ids"], batch(seed + 10)["input_ids"]
        with torch.no_grad():
            before = log_probability(reference, chosen) - log_probability(reference, rejected)
        margin = log_probability(model, chosen) - log_probability(model, rejected)
        (-F.logsigmoid(0.1 * (margin - before)).mean()).backward()
        optimiser.step()
        optimiser.zero_grad()


def distilled(model: Any) -> None:
    """A student that reads its own labelled loss and a teacher's logits in one step."""
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.SGD(model.parameters(), 1e-2)
    for seed in range(3):
        ids = batch(seed)["input_ids"]
        with torch.no_grad():
            wanted = teacher(ids, use_cache=False).logits.softmax(-1)
        far = F.kl_div(model(ids, use_cache=False).logits.log_softmax(-1), wanted.flip(-1), reduction="batchmean")
        (loss_of(model, seed) + far).backward()
        optimiser.step()
        optimiser.zero_grad()


LOOPS: dict[str, tuple[Callable[[Any], None], tuple[str, ...]]] = {
    "preferences": (preferences, ("qkv_proj", "gated_mlp")),
    "distilled": (distilled, ("qkv_proj", "gated_mlp", "causal_lm_loss")),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_the_same_weights_as_stock(loop: str) -> None:
    run, ran = LOOPS[loop]
    pair = twins.new_pair("llama", "float32")
    before = {name: one.clone() for name, one in pair.stock.state_dict().items()}
    run(pair.stock.train())
    with amd_ops.override(**ON):
        run(pair.overlay.train())
    assert all(calls(op) for op in ran)
    got = pair.overlay.state_dict()
    for name, want in pair.stock.state_dict().items():
        assert apart(got[name] - before[name], want - before[name]) < 1e-3, name


def scaled(model: Any) -> list[float]:
    """Products in fp16 and a loss that is scaled: far too much at first, which the scaler finds and skips."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-28)
    optimiser = torch.optim.SGD(model.parameters(), 1e-2)
    scales = []
    for seed in range(3):
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(model, seed)
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        scales.append(scaler.get_scale())
    return scales


def test_scaled_gradients_in_fp16() -> None:
    """The first step is skipped, the others are as near to fp32 as stock's."""
    pair = twins.new_pair("llama", "float32")
    exact, before = copy.deepcopy(pair.stock).train(), copy.deepcopy(pair.stock.state_dict())
    optimiser = torch.optim.SGD(exact.parameters(), 1e-2)
    for seed in (1, 2):
        loss_of(exact, seed).backward()
        torch.nn.utils.clip_grad_norm_(exact.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    assert scaled(pair.stock.train()) == [2.0**12] * 3
    with amd_ops.override(**ON):
        assert scaled(pair.overlay.train()) == [2.0**12] * 3
    assert calls("qkv_proj")
    assert calls("causal_lm_loss")
    stock, ours = pair.stock.state_dict(), pair.overlay.state_dict()
    for name, truth in exact.state_dict().items():
        step = truth - before[name]
        assert apart(ours[name] - before[name], step) <= 1.5 * apart(stock[name] - before[name], step) + 5e-3, name


@pytest.mark.parametrize("transform", ["grad", "vmap of grad", "jvp"])
def test_gradients_of_torch_func(transform: str) -> None:
    """Inside a transform the Linears are called one by one, and the numbers are stock's."""
    pair = twins.new_pair("llama", "float32")
    ids = batch()["input_ids"]
    found = []
    for model, toggles in ((pair.stock, OFF), (pair.overlay, ON)):
        model.set_attn_implementation("eager")  # SDPA on a CPU has no rules for transforms
        weights = {name: one.detach() for name, one in model.train().named_parameters()}

        def loss(weights: dict[str, Tensor], ids: Tensor, model: Any = model) -> Tensor:
            given = {"input_ids": ids, "labels": ids, "use_cache": False}
            made: Tensor = torch.func.functional_call(model, weights, kwargs=given).loss
            return made

        with amd_ops.override(**toggles):
            if transform == "grad":
                found.append(torch.func.grad(loss)(weights, ids))
            elif transform == "jvp":
                change = {name: one.cos() for name, one in weights.items()}
                found.append({"jvp": torch.func.jvp(lambda w: loss(w, ids), (weights,), (change,))[1]})
            else:
                found.append(torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, ids[:, None]))
    assert found[0].keys() == found[1].keys()
    for name, want in found[0].items():
        assert apart(found[1][name], want) < 1e-5, name
    assert not calls("qkv_proj")
