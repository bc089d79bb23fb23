"""The residual recipe: an add with the norm behind it, an add behind the MLP, and everything that is not quite one."""

from __future__ import annotations

import pytest
from rocm_overlay.errors import SourceError
from rocm_overlay.overlays.recipes.residual import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

LAYER = """
class Layer(nn.Module):
    def forward(self, hidden_states, mask=None):
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states, mask)
        hidden_states = residual + hidden_states

        # Fully Connected
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
        return hidden_states
"""
WITH_NORM = """
        _amd_sum = None
        if _amd and _amd.on.add_norm:
            _amd_sum = _amd.add_norm(self.post_attention_layernorm, hidden_states, residual)
        hidden_states = residual + hidden_states if _amd_sum is None else _amd_sum[1]

        # Fully Connected
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states) if _amd_sum is None else _amd_sum[0]
"""
STOCK_NORM = """
        hidden_states = residual + hidden_states

        # Fully Connected
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
"""
WITH_MLP = """
        _amd_mlp = None
        if _amd and _amd.on.mlp_add:
            _amd_mlp = _amd.mlp_add(self.mlp, hidden_states, residual{owned})
        hidden_states = self.mlp(hidden_states) if _amd_mlp is None else _amd_mlp
        hidden_states = residual + hidden_states if _amd_mlp is None else hidden_states
"""
STOCK_MLP = """
        hidden_states = self.mlp(hidden_states)
        hidden_states = residual + hidden_states
"""
OWNED = ", _amd_sum is not None"


def after(text: str, *, norm: bool, mlp: bool, owned: str = "") -> str:
    found = text.replace(STOCK_NORM[1:], WITH_NORM[1:]) if norm else text
    return found.replace(STOCK_MLP[1:], WITH_MLP.format(owned=owned)[1:]) if mlp else found


def test_both_sums_of_a_llama_layer() -> None:
    result = assert_edit(RECIPE, LAYER, after(LAYER, norm=True, mlp=True, owned=OWNED))
    assert [site[0] for site in result.outcomes[0].sites] == ["Layer.forward"]


def test_the_other_order_of_the_terms() -> None:
    before = LAYER.replace("residual + hidden_states", "hidden_states + residual")
    wanted = after(LAYER, norm=True, mlp=True, owned=OWNED)
    assert_edit(RECIPE, before, wanted.replace("residual + hidden_states", "hidden_states + residual"))


def test_a_dropout_around_the_term_is_handed_on() -> None:
    before = LAYER.replace("residual + hidden_states", "residual + self.dropout(hidden_states)")
    wanted = after(LAYER, norm=True, mlp=True, owned=OWNED)
    wanted = wanted.replace("residual + hidden_states", "residual + self.dropout(hidden_states)")
    wanted = wanted.replace("hidden_states, residual)", "hidden_states, residual, dropout=self.dropout)")
    assert_edit(RECIPE, before, wanted.replace(f"{OWNED})", f"{OWNED}, dropout=self.dropout)"))


def test_lines_that_grow_too_long_are_broken() -> None:
    """phi3: a comment stands behind the sum."""
    layer = LAYER.split("        hidden_states = self.mlp(")[0] + "        return hidden_states\n"
    before = layer.replace(
        "residual + hidden_states\n", "residual + self.resid_attn_dropout(hidden_states)  # main diff\n"
    )
    assert_edit(RECIPE, before, before.split("        hidden_states = residual")[0] + LONG)


LONG = """        _amd_sum = None
        if _amd and _amd.on.add_norm:
            _amd_sum = _amd.add_norm(
                self.post_attention_layernorm, hidden_states, residual, dropout=self.resid_attn_dropout
            )
        hidden_states = (
            residual + self.resid_attn_dropout(hidden_states)
            if _amd_sum is None
            else _amd_sum[1]
        )  # main diff

        # Fully Connected
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states) if _amd_sum is None else _amd_sum[0]
        return hidden_states
"""


def test_a_norm_between_mlp_and_add_leaves_the_second_sum_alone() -> None:
    norm = "        hidden_states = self.norm(hidden_states * 1)\n"
    gemma = LAYER.replace("self.mlp(hidden_states)\n", f"self.mlp(hidden_states)\n{norm}")
    assert_edit(RECIPE, gemma, after(gemma, norm=True, mlp=False))


@pytest.mark.parametrize("attribute", ["post_norm", "self_attn", "dropout", "o_proj"])
def test_a_module_that_is_no_mlp_by_its_name(attribute: str) -> None:
    before = LAYER.replace("self.mlp", f"self.{attribute}")
    assert_edit(RECIPE, before, after(before, norm=True, mlp=False))


def test_a_statement_before_the_mlp_means_that_the_residual_is_not_known_to_be_ours() -> None:
    call = "        hidden_states = self.mlp("
    before = LAYER.replace(call, f"        kept = residual\n{call}")
    assert_edit(RECIPE, before, after(before, norm=True, mlp=True))


def test_an_mlp_of_its_own() -> None:
    before = LAYER.replace("        hidden_states = self.post_attention_layernorm(hidden_states)\n", "        x = 1\n")
    assert_edit(RECIPE, before, after(before, norm=False, mlp=True))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # granite: a multiplier sits between
        ("residual + hidden_states", "residual + hidden_states * self.residual_multiplier"),
        ("residual + hidden_states", "residual + self.scale(hidden_states)"),
        ("residual + hidden_states", "residual + self.dropout(residual)"),
        ("residual + hidden_states", "self.dropout(residual) + hidden_states"),
        ("residual + hidden_states", "residual - hidden_states"),
        ("residual + hidden_states", "hidden_states + hidden_states"),
        ("hidden_states = residual + hidden_states", "hidden_states += residual"),
    ],
)
def test_another_sum_is_left_alone(old: str, new: str) -> None:
    assert_untouched(RECIPE, LAYER.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        hidden_states = self.post", "        mark()\n        hidden_states = self.post"),
        ("self.post_attention_layernorm(hidden_states)", "self.post_attention_layernorm(hidden_states, 1)"),
        ("self.post_attention_layernorm(hidden_states)", "self.post_attention_layernorm(residual)"),
        ("        hidden_states = self.post", "        normed = self.post"),
    ],
)
def test_no_norm_directly_behind_the_add(old: str, new: str) -> None:
    before = LAYER.replace(old, new).replace("self.mlp", "self.self_attn")
    assert before != LAYER
    assert_untouched(RECIPE, before)


def test_a_file_with_a_name_of_ours() -> None:
    with pytest.raises(SourceError, match="already uses a name of ours"):
        assert_untouched(RECIPE, LAYER.replace("mask=None", "_amd_sum=None"))


def test_a_function_outside_a_class_is_no_candidate() -> None:
    lines = LAYER.split("    def forward")[1]
    assert_untouched(RECIPE, "def forward" + lines.replace("\n    ", "\n"))
