"""The linear recipe: whole values only, and never inside a gated MLP."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.linear import ATTRIBUTES, RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

HEAD = "class A(nn.Module):\n    def forward(self, attn_output):\n"


def test_a_short_line_stays_one_line() -> None:
    assert_edit(
        RECIPE,
        HEAD + "        y = self.o_proj(y)  # out\n",
        HEAD + "        y = _amd.apply_linear(self.o_proj, y) if _amd and _amd.on.linear else self.o_proj(y)  # out\n",
    )


def test_a_long_line_is_broken() -> None:
    assert_edit(
        RECIPE,
        HEAD + "        attn_output = self.o_proj(attn_output)\n",
        HEAD
        + """        attn_output = (_amd.apply_linear(self.o_proj, attn_output) if _amd and _amd.on.linear
            else self.o_proj(attn_output))
""",
    )


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_attribute_and_a_return(attribute: str) -> None:
    stock = f"self.{attribute}(x)"
    ours = f"_amd.apply_linear(self.{attribute}, x) if _amd and _amd.on.linear else {stock}"
    assert_edit(RECIPE, f"{HEAD}        return {stock}\n", f"{HEAD}        return {ours}\n")


@pytest.mark.parametrize(
    "line",
    [
        "y = self.q_proj(x)",
        "y = self.fc1(x)",
        "y = self.o_proj(x) + 1",
        "y = self.o_proj(x)[0]",
        "y = other.o_proj(x)",
        "y = self.o_proj(x, 1)",
        "y = self.o_proj(input=x)",
        "y = self.o_proj(*x)",
        "y = o_proj(x)",
        "self.o_proj(x)",
        "y = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))",
    ],
)
def test_no_candidate(line: str) -> None:
    assert_untouched(RECIPE, HEAD + f"        {line}\n")


def test_a_slice_of_a_name_is_written_twice() -> None:
    assert_edit(
        RECIPE,
        HEAD + "        logits = self.lm_head(hidden_states[:, slice_indices, :])\n",
        HEAD
        + """\
        logits = (_amd.apply_linear(self.lm_head, hidden_states[:, slice_indices, :]) if _amd and _amd.on.linear
            else self.lm_head(hidden_states[:, slice_indices, :]))
""",
    )


def test_the_down_proj_of_a_guarded_mlp_body_is_left_to_the_guard() -> None:
    phi3 = """
class A(nn.Module):
    def forward(self, x):
        h = self.gate_up_proj(x)
        g, h = h.chunk(2, dim=-1)
        h = h * self.activation_fn(g)
        return self.down_proj(h)
"""
    assert_untouched(RECIPE, phi3)


def test_the_down_proj_of_an_mlp_that_gated_mlp_declines_is_a_site() -> None:
    product = "h = self.act_fn(self.gate_proj(x)) * self.up_proj(x) * self.scale"
    before = f"{HEAD}        {product}\n        h = self.down_proj(h)\n"
    line = "h = _amd.apply_linear(self.down_proj, h) if _amd and _amd.on.linear else self.down_proj(h)"
    assert_edit(RECIPE, before, before.replace("h = self.down_proj(h)", line))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (HEAD + "        return self.o_proj(x.reshape(1, -1))\n", "neither a plain name nor a slice of one"),
        (HEAD + "        return self.lm_head(x[:, f(y), :])\n", "neither a plain name nor a slice of one"),
        (HEAD + "        return self.lm_head(x.y)\n", "neither a plain name nor a slice of one"),
        (
            "class A:\n    def __init__(self):\n        self.qkv_proj = ConvLayer(1)\n\n"
            "    def forward(self, x):\n        return self.qkv_proj(x)\n",
            "self.qkv_proj is not built as nn.Linear",
        ),
    ],
)
def test_declined(text: str, reason: str) -> None:
    assert_untouched(RECIPE, text, reason)
