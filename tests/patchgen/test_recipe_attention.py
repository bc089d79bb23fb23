"""The attention recipe: rebind the looked-up function right before it is called, once."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.attention import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

LOOKUP = """
class A(nn.Module):
    def forward(self, q, k, v, mask):
        attention_interface: Callable = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attention_interface = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
"""
CALL = """
        attn_output, attn_weights = attention_interface(
            self,
            q,
            k,
            v,
            mask,
            scaling=self.scaling,
        )
        return attn_output
"""
GUARD = """
        if _amd and _amd.on.attention:
            attention_interface = _amd.route_attention(self, attention_interface)"""


def indent(text: str, by: str = "    ") -> str:
    return "".join(by + line if line.strip() else line for line in text.splitlines(keepends=True))


def test_the_call_is_routed() -> None:
    assert_edit(RECIPE, LOOKUP + CALL, LOOKUP + GUARD + CALL)


def test_the_comment_stays_with_the_call() -> None:
    comment = "\n        # the call"
    assert_edit(RECIPE, LOOKUP + comment + CALL, LOOKUP + GUARD + comment + CALL)


def test_branches_are_routed_each() -> None:
    call = indent("        out = attention_interface(self, q)[0]\n")
    both = "        if x:\n{0}        else:\n{0}        return out\n"
    assert_edit(RECIPE, LOOKUP + both.format(call), LOOKUP + both.format(indent(GUARD)[1:] + "\n" + call))


def test_calls_in_one_comprehension_are_one_site() -> None:
    call = "\n        outs = [attention_interface(self, i, k, v)[0] for i in q]\n"
    assert_edit(RECIPE, LOOKUP + call, LOOKUP + GUARD + call)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LOOKUP + CALL.replace("self,\n", "module,\n", 1), "the first argument of the interface is not self"),
        (LOOKUP + "        out = attention_interface(*args)\n", "first argument of the interface is not self"),
        (LOOKUP + "        out = attention_interface(m=self)\n", "first argument of the interface is not self"),
        (LOOKUP + "        for i in q:\n            out = attention_interface(self, i)\n", "outside the loop"),
        (
            LOOKUP.replace("        attention_interface: Callable = eager_attention_forward\n", "") + CALL,
            "not certainly assigned before the call",
        ),
    ],
)
def test_declined(text: str, reason: str) -> None:
    assert_untouched(RECIPE, text, reason)


def test_the_second_call_with_one_binding_is_declined() -> None:
    second = "        more = attention_interface(self, q)\n"
    before = LOOKUP + CALL.replace("        return attn_output\n", "") + second
    result = assert_edit(RECIPE, before, LOOKUP + GUARD + CALL.replace("        return attn_output\n", "") + second)
    assert [one.reason for one in result.outcomes[0].declined] == [
        "the attention function was already called with the same binding"
    ]


def test_a_call_inside_a_loop_that_also_looks_it_up_is_routed() -> None:
    loop = "class A(nn.Module):\n    def forward(self, q):\n        for i in q:\n"
    lookup = "            attention_interface = ALL_ATTENTION_FUNCTIONS[i]\n"
    call = "            out = attention_interface(self, i)\n"
    assert_edit(RECIPE, loop + lookup + call, loop + lookup + indent(GUARD)[1:] + "\n" + call)


@pytest.mark.parametrize("name", ["cache", "attn_fn", "q_"])
def test_what_the_local_is_called_does_not_matter(name: str) -> None:
    before, after = LOOKUP + CALL, LOOKUP + GUARD + CALL
    assert_edit(RECIPE, before.replace("attention_interface", name), after.replace("attention_interface", name))


def test_a_function_that_is_not_from_the_registry_is_no_candidate() -> None:
    assert_untouched(RECIPE, LOOKUP.split("        attention_interface:")[0] + CALL)
    assert_untouched(RECIPE, (LOOKUP + CALL).replace("ALL_ATTENTION_FUNCTIONS", "MINE"))


def test_a_function_is_no_candidate() -> None:
    assert_untouched(RECIPE, "def f(self, q):\n    attention_interface = g\n    return attention_interface(self, q)\n")
