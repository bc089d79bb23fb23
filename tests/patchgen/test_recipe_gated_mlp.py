"""The gated_mlp recipe: one expression, two statements, or a fused gate and up."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.gated_mlp import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

HEAD = "class A(nn.Module):\n    def forward(self, x):\n"
ONE = (
    HEAD
    + """        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down_proj
"""
)
MIXTRAL = (
    HEAD
    + """        h = self.act_fn(self.w1(x)) * self.w3(x)
        h = self.w2(h)
        return h
"""
)
PHI3 = (
    HEAD
    + """        up_states = self.gate_up_proj(x)

        gate, up_states = up_states.chunk(2, dim=-1)
        up_states = up_states * self.activation_fn(gate)

        return self.down_proj(up_states)
"""
)


def test_one_expression_becomes_a_conditional() -> None:
    after = (
        HEAD
        + """        down_proj = (_amd.gated_mlp(self, x) if _amd and _amd.on.gated_mlp
            else self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))
        return down_proj
"""
    )
    assert_edit(RECIPE, ONE, after)


def test_a_returned_expression_with_the_factors_swapped_and_other_names() -> None:
    before = HEAD + "        return self.wo(self.wi_1(x) * self.act(self.wi_0(x)))  # gated\n"
    after = (
        HEAD
        + """\
        return (_amd.gated_mlp(self, x, gate="wi_0", up="wi_1", down="wo", act="act") if _amd and _amd.on.gated_mlp
            else self.wo(self.wi_1(x) * self.act(self.wi_0(x))))  # gated
"""
    )
    assert_edit(RECIPE, before, after)


def test_an_expression_in_parentheses_and_lines_is_kept_verbatim() -> None:
    stock = """self.down_proj(
            self.act_fn(self.gate_proj(x))  # gate
            * self.up_proj(x)
        )"""
    before = HEAD + f"        return ({stock})\n"
    after = (
        HEAD
        + f"""        return ((
            _amd.gated_mlp(self, x)
            if _amd and _amd.on.gated_mlp
            else {stock}
        ))
"""
    )
    assert_edit(RECIPE, before, after)


@pytest.mark.parametrize(
    ("before", "call"),
    [
        (MIXTRAL, '_amd.gated_mlp(self, x, gate="w1", up="w3", down="w2")'),
        (
            MIXTRAL.replace("        h = self.w2(h)\n        return h\n", "        return self.w2(h)\n"),
            '_amd.gated_mlp(self, x, gate="w1", up="w3", down="w2")',
        ),
        (PHI3, '_amd.gated_mlp(self, x, gate_up="gate_up_proj", act="activation_fn")'),
    ],
)
def test_a_body_gets_an_early_return(before: str, call: str) -> None:
    guard = f"        if _amd and _amd.on.gated_mlp:\n            return {call}\n"
    assert_edit(RECIPE, before, before.replace(HEAD, HEAD + guard))


@pytest.mark.parametrize(
    "text",
    [
        ONE.replace(" * ", " + "),
        ONE.replace("self.up_proj(x)", "self.up_proj(y)"),
        ONE.replace("self.gate_proj(x))", "self.gate_proj(x) * self.scale)"),
        ONE.replace("* self.up_proj(x)", "* self.up_proj(x) * self.multiplier"),
        ONE.replace("self.down_proj(", "self.drop(self.down_proj(").replace("up_proj(x))", "up_proj(x)))"),
        MIXTRAL.replace("        h = self.w2(h)\n", "        h = self.dropout(h)\n        h = self.w2(h)\n"),
        PHI3.replace("chunk(2, dim=-1)", "chunk(2, dim=1)"),
        PHI3.replace("up_states * self.activation_fn(gate)", "up_states * self.activation_fn(up_states)"),
        PHI3.replace("gate, up_states = up", "up_states, gate = up"),
        PHI3.replace("x)\n\n", "x)\n        up_states = self.dropout(up_states)\n"),
    ],
)
def test_other_formulas_are_no_candidates(text: str) -> None:
    assert_untouched(RECIPE, text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ONE.replace("(x)", "(self.norm(x))"), "the input is not a plain name"),
        (MIXTRAL.replace("def forward(self, x)", "def forward(self, y)"), "x is not a parameter of the method"),
        (ONE.replace("self.up_proj", "self.gate_proj"), "one attribute has two roles"),
        (
            ONE.replace("    def f", "    def __init__(self):\n        self.up_proj = Conv1D(1)\n\n    def f"),
            "self.up_proj is not built as nn.Linear",
        ),
    ],
)
def test_declined(text: str, reason: str) -> None:
    assert_untouched(RECIPE, text, reason)


@pytest.mark.parametrize(
    "lines",
    [
        ["gate = self.act_fn(self.gate_proj(x))", "up = self.up_proj(x)", "return self.down_proj(gate * up)"],
        ["gate = self.gate_proj(x)", "up = self.up_proj(x)", "return self.down_proj(self.act_fn(gate) * up)"],
        ["gate = self.gate_proj(x)", "up = self.up_proj(x)", "h = self.act_fn(gate) * up", "return self.down_proj(h)"],
    ],
)
def test_gate_and_up_in_statements_of_their_own(lines: list[str]) -> None:
    before = HEAD + "".join(f"        {line}\n" for line in lines)
    guard = "        if _amd and _amd.on.gated_mlp:\n            return _amd.gated_mlp(self, x)\n"
    assert_edit(RECIPE, before, before.replace(HEAD, HEAD + guard))


@pytest.mark.parametrize("product", ["up * self.act(gate)", "self.act(gate) * up"])
def test_one_linear_for_both_without_a_name_for_the_product(product: str) -> None:
    lines = ["both = self.gate_up_proj(x)", "gate, up = both.chunk(2, dim=-1)", f"return self.down_proj({product})"]
    before = HEAD + "".join(f"        {line}\n" for line in lines)
    call = '_amd.gated_mlp(self, x, gate_up="gate_up_proj", act="act")'
    guard = f"        if _amd and _amd.on.gated_mlp:\n            return {call}\n"
    assert_edit(RECIPE, before, before.replace(HEAD, HEAD + guard))
