"""The loss by blocks of the vocabulary: its two kernels against stock's statements and against fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import amd_ops
from amd_ops.backends import vocabulary
from amd_ops.backends.triton import cross_entropy
from amd_ops.backends.vocabulary import Form
from amd_ops.ops.cross_entropy import eager_linear_cross_entropy

from .support import DTYPES, few, ran

FORMS = (Form(), Form(softcap=3.0), Form(divisor=8.0), Form(factor=0.3), Form(2.0, 3.0, 5.0))
ROWS, WIDTH, WORDS = 13, 32, 150


@pytest.fixture
def asked(clean_toggles: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toggle, strictly, and blocks of which a head of 150 words has three, the last of 22."""
    monkeypatch.setattr(vocabulary, "COLUMNS", 64)
    monkeypatch.setattr(cross_entropy, "PROBED", 70)  # the interpreter takes its time for more
    with amd_ops.override(use_fused_cross_entropy=1, strict=1):
        yield


def made(dtype: torch.dtype, *, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    torch.manual_seed(3)
    parts = [torch.randn(shape).to(dtype).requires_grad_() for shape in ((ROWS, WIDTH), (WORDS, WIDTH), (WORDS,))]
    labels = torch.randint(0, WORDS, (ROWS,))
    labels[::4] = -100
    return parts[0], parts[1], parts[2] if bias else None, labels


def trained(losses: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    scale = torch.linspace(0.5, 2, losses.shape[0])
    return [losses.detach(), *torch.autograd.grad((losses * scale).sum(), [one for one in inputs if one is not None])]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_and_gradients_are_no_further_from_the_truth_than_stocks(
    asked: None, form: Form, bias: bool, dtype: torch.dtype
) -> None:
    x, weight, more, labels = made(dtype, bias=bias)
    scales = {name: number for name, number in form._asdict().items() if number is not None}
    got = trained(amd_ops.linear_cross_entropy(x, weight, labels, more, **scales), x, weight, more)
    assert ran("linear_cross_entropy") == 1
    want = trained(eager_linear_cross_entropy(x, weight, more, labels, -100, form), x, weight, more)
    exact = [None if one is None else one.detach().double().requires_grad_() for one in (x, weight, more)]
    logits = F.linear(exact[0], exact[1], exact[2]) / (form.divisor or 1.0) * (form.factor or 1.0)  # type: ignore[arg-type]
    if form.softcap is not None:
        logits = torch.tanh(logits / form.softcap) * form.softcap
    truth = trained(F.cross_entropy(logits, labels, reduction="none"), *exact)
    for mine, theirs, true in zip(got, want, truth, strict=True):
        assert mine.dtype is theirs.dtype
        assert (mine - true).norm() <= 1.5 * (theirs - true).norm() + 2e-6 * true.norm()


@few(25)
@given(
    rows=st.integers(1, 5),
    words=st.integers(1, 200),
    ignore=st.integers(-3, 190),
    size=st.sampled_from((0.01, 1.0, 30.0)),
    dtype=st.sampled_from(DTYPES),
)
def test_any_vocabulary_and_ignored_word(
    asked: None, rows: int, words: int, ignore: int, size: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(rows * words)
    x, weight = (torch.randn(shape).to(dtype).requires_grad_() for shape in ((rows, 4), (words, 4)))
    labels = torch.randint(0, words, (rows,))
    form = Form(factor=size)
    got = trained(amd_ops.linear_cross_entropy(x, weight, labels, ignore_index=ignore, factor=size), x, weight)
    want = trained(eager_linear_cross_entropy(x, weight, None, labels, ignore, form), x, weight)
    allowed = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for mine, theirs in zip(got, want, strict=True):
        assert (mine - theirs).norm() <= allowed * theirs.norm() + 1e-6


@pytest.mark.parametrize("planted", [float("inf"), float("nan"), 1e30])
def test_numbers_that_break_stock_break_here(asked: None, planted: float) -> None:
    x, weight, _, labels = made(torch.float32, bias=False)
    with torch.no_grad():
        x[1, 0] = planted
    got = trained(amd_ops.linear_cross_entropy(x, weight, labels), x, weight)
    want = trained(eager_linear_cross_entropy(x, weight, None, labels, -100, Form()), x, weight)
    assert bool(torch.isnan(want[0][1])) or planted == 1e30
    for mine, theirs in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("words", [slice(0, 64), slice(64, WORDS), slice(0, 120)])
def test_words_that_a_bias_forbids(asked: None, words: slice) -> None:
    """-inf in a whole block, in the first one or in the last."""
    x, weight, bias, labels = made(torch.float32)
    assert bias is not None
    with torch.no_grad():
        bias[words] = -float("inf")
        allowed = torch.arange(WORDS)[~torch.isinf(bias)]
        labels.copy_(torch.where(labels == -100, labels, allowed[labels % len(allowed)]))
    got = trained(amd_ops.linear_cross_entropy(x, weight, labels, bias), x, weight, bias)
    want = trained(eager_linear_cross_entropy(x, weight, bias, labels, -100, Form()), x, weight, bias)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_what_is_frozen_gets_no_gradient(asked: None) -> None:
    x, weight, bias, labels = made(torch.float32)
    amd_ops.linear_cross_entropy(x, weight.detach(), labels, bias).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
    with torch.no_grad():
        assert not amd_ops.linear_cross_entropy(x, weight, labels, bias).requires_grad
    assert ran("linear_cross_entropy") == 2


def test_autocast_a_kept_graph_and_second_derivatives(asked: None) -> None:
    x, weight, _, labels = made(torch.float32, bias=False)
    found = []
    for tiers in ("triton", "eager"):
        with amd_ops.override(tiers=tiers), torch.autocast("cpu", torch.bfloat16):
            losses = amd_ops.linear_cross_entropy(x, weight, labels)
        first = torch.autograd.grad(losses.sum(), [x, weight], retain_graph=True)
        again = torch.autograd.grad(losses.sum(), [x, weight])
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        assert [one.dtype for one in first] == [torch.float32] * 2
        found.append((losses.detach(), *first))
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).norm() <= 1e-2 * theirs.norm()
    second = []
    for tiers in ("triton", "eager"):
        with amd_ops.override(tiers=tiers):
            (dx,) = torch.autograd.grad(amd_ops.linear_cross_entropy(x, weight, labels).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(dx.square().sum(), weight)[0])
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-5)


def test_a_label_outside_of_the_vocabulary_is_stocks_error(asked: None) -> None:
    x, weight, _, labels = made(torch.float32, bias=False)
    labels[1] = WORDS
    with pytest.raises(IndexError, match=f"Target {WORDS} is out of bounds"):
        amd_ops.linear_cross_entropy(x, weight, labels)


def test_fp64_is_left_to_torch(clean_toggles: None) -> None:
    x, weight, _, labels = made(torch.float64, bias=False)
    with amd_ops.override(use_fused_cross_entropy=1), pytest.warns(amd_ops.DeclinedWarning, match="float64"):
        amd_ops.linear_cross_entropy(x, weight, labels)
    assert amd_ops.report().calls("linear_cross_entropy", "torch") == 1


def test_a_models_loss_runs_here(asked: None) -> None:
    """Through what an overlaid forward calls."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    torch.manual_seed(1)
    head, hidden = nn.Linear(WIDTH, WORDS, bias=False), torch.randn(2, 5, WIDTH, requires_grad=True)
    labels = torch.randint(0, WORDS, (2, 5))
    got = amd_ops.causal_lm_loss(ForCausalLMLoss, head, hidden, labels, WORDS)
    assert got is not None
    assert ran("linear_cross_entropy") == 1
    want = ForCausalLMLoss(head(hidden), labels, WORDS)
    for mine, theirs in zip(*(torch.autograd.grad(one, [hidden, head.weight]) for one in (got, want)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_a_block_is_read_and_written_in_rows_of_any_stride() -> None:
    wide = torch.randn(4, 96)
    total, target = torch.full((4,), -torch.inf), torch.zeros(4)
    labels = torch.tensor([10, 69, 9, 70])  # words 10 to 69 are here
    cross_entropy.launch_add(wide[:, 8:68], labels, 10, total, target, Form(), wave=32)
    torch.testing.assert_close(total, wide[:, 8:68].logsumexp(1))
    torch.testing.assert_close(target, torch.stack((wide[0, 8], wide[1, 67], torch.tensor(0.0), torch.tensor(0.0))))
    before = wide.clone()
    want = (before[:, 8:68] - total[:, None]).exp()
    want[0, 0] -= 1
    want[1, 59] -= 1
    got = cross_entropy.launch_gradient(wide[:, 8:68], labels, 10, total, torch.ones(4), Form(), wave=32)
    torch.testing.assert_close(got, want)
    assert torch.equal(wide[:, :8], before[:, :8])
    assert torch.equal(wide[:, 68:], before[:, 68:])
