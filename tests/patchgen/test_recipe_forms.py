"""The forms recipe: a mark on every forward whose whole formula is known, and on no other."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.forms import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched
from tests.patchgen.test_recipe_rms_norm import GEMMA, LLAMA

MLP = """
class MLP(nn.Module):
    def forward(self, x):
        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down_proj

    def other(self):
        pass
"""
EXPERT = """
class Expert(nn.Module):
    def forward(self, hidden_states):
        current = self.act_fn(self.w1(hidden_states)) * self.w3(hidden_states)
        current = self.w2(current)
        return current
"""
END = "return self.weight * hidden_states.to(input_dtype)\n"


def test_a_norm_is_marked_with_its_attributes_and_form() -> None:
    mark = '\n    forward.amd_rms_norm = ("weight", "variance_epsilon", "llama")\n'
    assert_edit(RECIPE, LLAMA, LLAMA.replace(END, END + mark))
    renamed = LLAMA.replace("variance_epsilon", "eps").replace("self.weight", "self.scale")
    end = END.replace("weight", "scale")
    assert_edit(RECIPE, renamed, renamed.replace(end, end + '\n    forward.amd_rms_norm = ("scale", "eps", "llama")\n'))
    end = "return output.type_as(x)\n"
    assert_edit(RECIPE, GEMMA, GEMMA.replace(end, end + '\n    forward.amd_rms_norm = ("weight", "eps", "gemma")\n'))


def test_an_mlp_is_marked_with_the_names_that_are_not_the_usual_ones() -> None:
    end = "        return down_proj\n"
    assert_edit(RECIPE, MLP, MLP.replace(end, end + "\n    forward.amd_gated_mlp = {}\n"))
    end = "        return current\n"
    mark = '\n    forward.amd_gated_mlp = {"gate": "w1", "up": "w3", "down": "w2"}\n'
    assert_edit(RECIPE, EXPERT, EXPERT.replace(end, end + mark))


def test_a_comment_behind_the_last_statement_stays_on_its_line() -> None:
    before = MLP.replace("return down_proj\n", "return down_proj  # done\n")
    end = "        return down_proj  # done\n"
    assert_edit(RECIPE, before, before.replace(end, end + "\n    forward.amd_gated_mlp = {}\n"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return down_proj\n", "return down_proj * 2\n"),
        ("        down_proj = ", "        x = x * 2\n        down_proj = "),
        ("        return down_proj\n", "        self.seen = x\n        return down_proj\n"),
        ("(self, x)", "(self, x, scale=1)"),
    ],
)
def test_a_forward_that_does_more_gets_no_mark(old: str, new: str) -> None:
    assert_untouched(RECIPE, MLP.replace(old, new), "the forward does more than the gated MLP")


def test_only_a_forward_is_marked() -> None:
    assert_untouched(RECIPE, MLP.replace("def forward", "def feed"))


def test_an_unknown_norm_gets_no_mark() -> None:
    assert_untouched(RECIPE, LLAMA.replace("torch.rsqrt(variance", "torch.rsqrt(2 * variance"))
