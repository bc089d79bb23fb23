"""The loss recipe: whatever makes the logits, changes them and is given them; never where somebody else needs them."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes import linear
from rocm_overlay.overlays.recipes.loss import RECIPE
from rocm_overlay.patchgen.engine import generate
from rocm_overlay.patchgen.recipe import RecipeSet

from tests.patchgen.support import DIGEST, assert_edit, assert_untouched, source

HEAD = "class A(nn.Module):\n    def forward(self, hidden, labels=None, **kwargs):\n"
STOCK = """
        logits = self.lm_head(hidden)

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=9, **kwargs)

        return Output(loss=loss, logits=logits)
"""


def test_a_head_and_a_loss() -> None:
    assert_edit(
        RECIPE,
        HEAD + STOCK,
        HEAD
        + """
        _amd_loss = None
        if _amd and _amd.on.loss and labels is not None:
            _amd_loss = _amd.causal_lm_loss(
                self.loss_function, self.lm_head, hidden, labels=labels, vocab_size=9, **kwargs
            )
        logits = None if _amd_loss is not None else self.lm_head(hidden)

        loss = None
        if labels is not None:
            loss = (_amd_loss if _amd_loss is not None
                else self.loss_function(logits=logits, labels=labels, vocab_size=9, **kwargs))

        return Output(loss=loss, logits=logits)
""",
    )


def test_scales_a_soft_cap_a_cast_and_moved_labels() -> None:
    """By role: the names of the head, the logits and the cap are others here."""
    result = assert_edit(
        RECIPE,
        HEAD
        + """
        out = self.embed_out(hidden[:, keep, :])
        out = out / self.config.scaling
        if self.cap is not None:
            out = out / self.cap
            out = torch.tanh(out)
            out = out * self.cap
        if labels is not None:
            out = out.float()
            labels = labels.to(out.device)
            loss = self.loss_function(out, labels, self.vocab_size)
        return (loss, out)
""",
        HEAD
        + """
        _amd_loss = None
        if _amd and _amd.on.loss and labels is not None:
            _amd_loss = _amd.causal_lm_loss(
                self.loss_function, self.embed_out, hidden[:, keep, :],
                labels, self.vocab_size,
                logits_divisor=self.config.scaling, logits_softcap=self.cap,
            )
        out = None if _amd_loss is not None else self.embed_out(hidden[:, keep, :])
        out = None if _amd_loss is not None else out / self.config.scaling
        if _amd_loss is None and self.cap is not None:
            out = out / self.cap
            out = torch.tanh(out)
            out = out * self.cap
        if labels is not None:
            out = None if _amd_loss is not None else out.float()
            labels = labels if _amd_loss is not None else labels.to(out.device)
            loss = (_amd_loss if _amd_loss is not None
                else self.loss_function(out, labels, self.vocab_size))
        return (loss, out)
""",
    )
    assert result.outcomes[0].counts == {"loss": 1, "loss.divisor": 1, "loss.softcap": 1}


def test_the_linear_recipe_edits_the_same_head() -> None:
    result = generate(source(HEAD + STOCK), "x.py", RecipeSet((linear.RECIPE, RECIPE), DIGEST))
    text = result.overlay.decode()
    assert (
        """
        logits = None if _amd_loss is not None else (_amd.apply_linear(self.lm_head, hidden) if _amd and _amd.on.linear
            else self.lm_head(hidden))
"""
        in text
    )
    compile(text, "x.py", "exec")


DECLINED = {
    "the logits are used for something else before the loss": ("        loss = None\n", "        logits[:, 0] = 1\n"),
    "the logits are used for something else after the loss": (
        "        return Output",
        "        z = logits.logsumexp(-1)\n        return Output",
    ),
    "what the loss is given is made after the logits": ("        loss = None\n", "        labels = labels + 1\n"),
    "the argument of the head is neither a plain name nor a slice of one": ("(hidden)", "(self.norm(hidden))"),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declined(reason: str) -> None:
    assert_untouched(RECIPE, HEAD + STOCK.replace(*DECLINED[reason]), reason)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.lm_head(hidden)", "hidden @ self.weight"),
        (
            "self.loss_function(logits=logits, labels=labels, vocab_size=9, **kwargs)",
            "self.loss_function(labels, logits)",
        ),
        ("self.loss_function(logits=logits,", "self.other(logits=logits,"),
        ("self.loss_function(logits=logits,", "self.loss_function(logits=logits[0],"),
    ],
)
def test_no_candidate(old: str, new: str) -> None:
    assert_untouched(RECIPE, HEAD + STOCK.replace(old, new))


def test_another_kind_of_head() -> None:
    init = "class A(nn.Module):\n    def __init__(self):\n        self.lm_head = Head()\n\n"
    body = HEAD.removeprefix("class A(nn.Module):\n") + STOCK
    assert_untouched(RECIPE, init + body, "self.lm_head is not built as nn.Linear")
