"""The loss without logits: stock's numbers, its nan, its errors, and never more than a block of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import amd_ops
from amd_ops.backends import vocabulary

ROWS, WIDTH, WORDS = 13, 16, 50
Scales = dict[str, float]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty words are four blocks, the last of two."""
    monkeypatch.setattr(vocabulary, "COLUMNS", WIDTH)


def made(dtype: torch.dtype = torch.float32, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Hidden states, weight and bias that want gradients, and labels of which some are ignored."""
    generator = torch.Generator().manual_seed(3)
    x, weight, more = (torch.randn(shape, generator=generator) for shape in ((ROWS, WIDTH), (WORDS, WIDTH), (WORDS,)))
    labels = torch.randint(0, WORDS, (ROWS,), generator=generator)
    labels[::4] = -100
    parts = [one.to(dtype).requires_grad_() for one in (x, weight, more)]
    return parts[0], parts[1], parts[2] if bias else None, labels


def stock(x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, upcast: bool = True, **scales: Any) -> Tensor:
    """transformers' statements; without ``upcast`` the truth in fp64."""
    ignore = scales.pop("ignore_index", -100)
    logits = F.linear(x, weight, bias)
    if "divisor" in scales:
        logits = logits / scales["divisor"]
    if "factor" in scales:
        logits = logits * scales["factor"]
    if "softcap" in scales:
        logits = torch.tanh(logits / scales["softcap"]) * scales["softcap"]
    return F.cross_entropy(logits.float() if upcast else logits, labels, ignore_index=ignore, reduction="none")


def gradients(losses: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            (losses.double() * torch.linspace(0.5, 2, ROWS)).sum(), [i for i in inputs if i is not None]
        )
    )


SCALES: list[Scales] = [
    {},
    {"softcap": 3.0},
    {"divisor": 8.0},
    {"factor": 0.3},
    {"divisor": 2.0, "factor": 3.0, "softcap": 5.0},
]


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tiers", ["torch", "eager"])
def test_losses_and_gradients(scales: Scales, bias: bool, tiers: str) -> None:
    x, weight, more, labels = made(bias=bias)
    with amd_ops.override(tiers=tiers):
        got = amd_ops.linear_cross_entropy(x, weight, labels, more, **scales)
    want = stock(x, weight, labels, more, **scales)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(gradients(got, x, weight, more), gradients(want, x, weight, more), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_from_the_truth_than_stock(scales: Scales, dtype: torch.dtype) -> None:
    x, weight, more, labels = made(dtype)
    exact = [one.detach().double().requires_grad_() for one in (x, weight, more) if one is not None]
    truth = stock(exact[0], exact[1], labels, exact[2], upcast=False, **scales)
    got = amd_ops.linear_cross_entropy(x, weight, labels, more, **scales)
    want = stock(x, weight, labels, more, **scales)
    assert (got - truth).norm() <= 1.5 * (want - truth).norm()
    found = [gradients(*one) for one in ((got, x, weight, more), (want, x, weight, more), (truth, *exact))]
    for mine, theirs, true in zip(*found, strict=True):
        assert mine.dtype is dtype
        assert (mine.double() - true).norm() <= 1.5 * (theirs.double() - true).norm()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(-3, 69), st.integers(0, 2**31))
def test_any_vocabulary_and_ignored_word(words: int, rows: int, ignore: int, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(rows, 4, requires_grad=True), torch.randn(words, 4, requires_grad=True)
    labels = torch.randint(0, words, (rows,))
    got = amd_ops.linear_cross_entropy(x, weight, labels, ignore_index=ignore)
    want = stock(x, weight, labels, None, ignore_index=ignore)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(*(torch.autograd.grad(one.sum(), [x, weight]) for one in (got, want)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """Remembers the most elements that any result had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_the_logits_are_never_whole() -> None:
    x, weight = torch.randn(200, WIDTH, requires_grad=True), torch.randn(WORDS, WIDTH, requires_grad=True)
    labels = torch.randint(0, WORDS, (200,))
    with Largest() as seen:
        amd_ops.linear_cross_entropy(x, weight, labels).mean().backward()
    assert seen.elements == 200 * WIDTH  # a block is as wide as the hidden states here
    with Largest() as seen:
        stock(x, weight, labels, None).mean().backward()
    assert seen.elements == 200 * WORDS


def test_frozen_parts_get_nothing() -> None:
    x, weight, bias, labels = made()
    assert bias is not None
    for frozen in (x, weight, bias):
        frozen.requires_grad_(False)
        losses = amd_ops.linear_cross_entropy(x, weight, labels, bias)
        others = [one for one in (x, weight, bias) if one.requires_grad]
        want = stock(x, weight, labels, bias)
        for mine, theirs in zip(gradients(losses, *others), gradients(want, *others), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        frozen.requires_grad_(True)


def test_a_scaled_loss_does_not_vanish_in_fp16() -> None:
    """What GradScaler is for: the scale is there before the gradient of the logits is rounded to fp16."""
    x, weight, _, labels = made(torch.float16, bias=False)
    found = []
    for run in (amd_ops.linear_cross_entropy, lambda *a: stock(*a, None)):
        loss = run(x, weight, labels).mean() * 1e-6
        found.append(torch.autograd.grad(loss * 2.0**16, [x, weight]))
    for mine, theirs in zip(*found, strict=True):
        assert theirs.any()
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-4)


def test_second_derivatives_and_kept_graphs() -> None:
    x, weight, _, labels = made(bias=False)
    found = []
    for run in (amd_ops.linear_cross_entropy, lambda *a: stock(*a, None)):
        total = run(x, weight, labels).sum()
        first = torch.autograd.grad(total, [x, weight], create_graph=True)
        again = torch.autograd.grad(total, [x, weight], retain_graph=True)
        for one, other in zip(first, again, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), [x, weight]))  # type: ignore[arg-type]
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_write_between_forward_and_backward_is_torchs_error(index: int) -> None:
    parts = made()
    x, weight, bias, labels = parts
    losses = amd_ops.linear_cross_entropy(x * 1, weight, labels, bias) if index else None
    changed: Any = parts[index]
    if losses is None:
        changed = x * 1
        losses = amd_ops.linear_cross_entropy(changed, weight, labels, bias)
    with torch.no_grad():
        changed.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


@pytest.mark.parametrize("label", [WORDS, -1, 10**9])
def test_a_label_outside_of_the_vocabulary_is_torchs_error(label: int) -> None:
    x, weight, _, labels = made()
    labels[3] = label
    for run in (amd_ops.linear_cross_entropy, lambda *a: stock(*a, None)):
        with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
            run(x, weight, labels)


def test_unusable_arguments_are_named() -> None:
    x, weight, bias, labels = made()
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("x is", lambda: amd_ops.linear_cross_entropy(x[None], weight, labels)),
        ("weight is", lambda: amd_ops.linear_cross_entropy(x, weight[:, :3], labels)),
        ("weight is", lambda: amd_ops.linear_cross_entropy(x, weight.bfloat16(), labels)),
        ("labels is", lambda: amd_ops.linear_cross_entropy(x, weight, labels[1:])),
        ("bias is", lambda: amd_ops.linear_cross_entropy(x, weight, labels, bias[1:])),  # type: ignore[index]
    ]
    for match, call in wrong:
        with pytest.raises(amd_ops.ArgumentError, match=match):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    x, weight, bias, labels = made(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = (run(x, weight, labels, bias) for run in (amd_ops.linear_cross_entropy, stock))
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)
    for mine, theirs in zip(gradients(got, x, weight, bias), gradients(want, x, weight, bias), strict=True):
        assert mine.dtype is theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=5e-2, atol=5e-2)


# -- as overlaid forwards call it


class Model(nn.Module):
    """A head and transformers' loss, as the overlaid text puts them together."""

    def __init__(self) -> None:
        super().__init__()
        from transformers.loss.loss_utils import ForCausalLMLoss

        torch.manual_seed(5)
        self.head, self.loss_function = nn.Linear(WIDTH, WORDS, bias=False), ForCausalLMLoss
        self.hidden = torch.randn(2, 7, WIDTH)
        self.labels = torch.randint(0, WORDS, (2, 7))
        self.labels[0, :3] = -100

    def ours(self, **given: Any) -> Tensor | None:
        given = {"labels": self.labels, "vocab_size": WORDS, **given}
        return amd_ops.causal_lm_loss(self.loss_function, self.head, given.pop("hidden", self.hidden), **given)

    def stock(self, **given: Any) -> Tensor:
        given = {"labels": self.labels, "vocab_size": WORDS, **given}
        loss: Tensor = self.loss_function(self.head(given.pop("hidden", self.hidden)), **given)
        return loss


GIVEN: dict[str, dict[str, Any]] = {
    "mean": {},
    "items": {"num_items_in_batch": 5},
    "items as a tensor": {"num_items_in_batch": torch.tensor(9)},
    "another ignored word": {"ignore_index": 3, "labels": torch.arange(14).view(2, 7) % 5},
    "shifted already": {"labels": None, "shift_labels": torch.arange(14).view(2, 7)},
    "words that stock ignores too": {"labels": torch.full((2, 7), -100)},
    "more than the loss knows": {"output_hidden_states": True, "cu_seq_lens_q": None},
}


@pytest.mark.parametrize("name", GIVEN)
def test_the_loss_of_a_model(name: str) -> None:
    model = Model()
    got, want = model.ours(**GIVEN[name]), model.stock(**GIVEN[name])
    assert got is not None
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6, equal_nan=True)
    for loss in (got, want):
        loss.backward()
    (mine, theirs) = model.head.weight.grad, torch.autograd.grad(model.stock(**GIVEN[name]), model.head.weight)[0]
    torch.testing.assert_close(mine, 2 * theirs, rtol=1e-5, atol=1e-6)  # both backwards have added up


def reasons() -> dict[str, int]:
    row = next(row for row in amd_ops.report().as_dict()["ops"] if row["op"] == "causal_lm_loss")
    return {one["reason"]: one["calls"] for one in row["tiers"][0]["declined"]}


def patched(model: Model) -> None:
    model.loss_function = lambda *args, **kwargs: torch.zeros(())


DECLINES: dict[str, tuple[Callable[[Model], object], dict[str, Any]]] = {
    "not transformers' own ForCausalLMLoss": (patched, {}),
    "hook is registered": (lambda m: m.head.register_forward_hook(lambda *a: None), {}),
    "not exactly nn.Linear": (lambda m: setattr(m, "head", nn.Sequential(m.head)), {}),
    "other rows than the vocabulary": (lambda m: None, {"vocab_size": WORDS - 1}),
    "one int64 for each hidden state": (lambda m: setattr(m, "labels", m.labels.int()), {}),
    "one int64 for each": (lambda m: None, {"hidden": torch.randn(2, 3, WIDTH)}),
}


@pytest.mark.filterwarnings("ignore::amd_ops.DeclinedWarning")
@pytest.mark.parametrize("reason", DECLINES)
def test_stock_computes_where_ours_may_not(reason: str) -> None:
    model, (change, given) = Model(), DECLINES[reason]
    change(model)
    assert model.ours(**given) is None
    assert [one for one in reasons() if reason in one]


def test_an_evaluation_keeps_its_logits_and_is_no_decline() -> None:
    with amd_ops.override(use_fused_cross_entropy=1, strict=1), torch.no_grad():
        assert Model().ours() is None
    assert reasons() == {}


def test_a_patched_cross_entropy_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "cross_entropy", lambda *args, **kwargs: torch.zeros(()))
    assert Model().ours() is None
