"""The qkv recipe: on, the calls move up to the first of them, so nothing on the way may matter; off, nothing moves."""

from __future__ import annotations

import re

import pytest
from rocm_overlay.overlays.recipes.qkv import RECIPE, SPELLINGS
from rocm_overlay.patchgen.engine import generate

from tests.patchgen.support import assert_edit, assert_untouched, body, one, source

METHOD = """
class A(nn.Module):
    def forward(self, hidden_states, key_value_states=None):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
"""
INSERTED = """\
        _amd_qkv = list(_amd.qkv_proj(self, {})) if _amd and _amd.on.qkv else None
"""
LLAMA = [
    "query_states = self.q_proj(hidden_states).view(shape).transpose(1, 2)",
    "key_states = self.k_proj(hidden_states).view(shape).transpose(1, 2)",
    "value_states = self.v_proj(hidden_states).view(shape).transpose(1, 2)",
]
QWEN3 = [
    "query_states = self.q_norm(self.q_proj(hidden_states).view(shape)).transpose(1, 2)",
    "key_states = self.k_norm(self.k_proj(hidden_states).view(shape)).transpose(1, 2)",
    "value_states = self.v_proj(hidden_states).view(shape).transpose(1, 2)",
]
OLMO2 = [
    "query_states = self.q_norm(self.q_proj(hidden_states))",
    "key_states = self.k_norm(self.k_proj(hidden_states))",
    "value_states = self.v_proj(hidden_states)",
]
GATED = [
    "query_states, gate = torch.chunk(",
    "    self.q_proj(hidden_states).view(*shape, 2), 2, dim=-1",
    ")",
    "key_states = self.k_norm(self.k_proj(hidden_states).view(shape)).transpose(1, 2)",
    "value_states = self.v_proj(hidden_states).view(shape).transpose(1, 2)",
]


def method(lines: list[str]) -> str:
    return METHOD + "".join(f"        {line}\n" for line in lines) + "        return query_states\n"


def taken(line: str) -> str:
    """A statement that takes its projection from the list where there is one, in two lines where one would be too
    long.
    """
    result = re.sub(r"self\.([qkv]_proj)\((\w+)\)", r"(_amd_qkv.pop(0) if _amd_qkv else self.\1(\2))", line)
    return result if len(result) + 8 <= 119 else result.replace(" else", "\n            else")


def edited(lines: list[str], asked: str = "hidden_states") -> str:
    after = "".join(f"        {taken(line)}\n" for line in lines)
    return METHOD + INSERTED.format(asked) + after + "        return query_states\n"


@pytest.mark.parametrize("lines", [LLAMA, QWEN3, OLMO2, GATED], ids=["llama", "qwen3", "olmo2", "qwen3_next"])
def test_the_spellings(lines: list[str]) -> None:
    assert_edit(RECIPE, method(lines), edited(lines))


def test_the_projections_are_asked_for_in_the_order_in_which_stock_calls_them() -> None:
    lines = [LLAMA[2], LLAMA[0], LLAMA[1]]
    asked = 'hidden_states, ("v_proj", "q_proj", "k_proj")'
    one_line = INSERTED.format(asked)
    broken = f"""\
        _amd_qkv = (list(_amd.qkv_proj(self, {asked}))
            if _amd and _amd.on.qkv else None)
"""
    assert len(one_line) > 119
    assert_edit(RECIPE, method(lines), edited(lines, asked).replace(one_line, broken))


def test_other_names_and_an_unrelated_statement_between() -> None:
    lines = [
        "queries = self.q_proj(x)",
        "gate = self.gate(x)",
        "queries = queries.view(1, -1)",
        "keys = self.k_proj(x)",
        "values = self.v_proj(x)",
    ]
    head = "class A(nn.Module):\n    def forward(self, x):\n"
    before = head + "".join(f"        {line}\n" for line in lines)
    after = head + INSERTED.format("x") + "".join(f"        {taken(line)}\n" for line in lines)
    assert_edit(RECIPE, before, after)


def test_a_line_that_grows_too_long_is_broken() -> None:
    name = "a_rather_long_name_for_hidden_states"
    before = f"""
class A(nn.Module):
    def forward(self, {name}):
        q = self.q_proj({name})
        k = self.k_proj({name}).view(*a_long_shape_of_heads).transpose(1, 2)
        v = self.v_proj({name})
"""
    after = f"""
class A(nn.Module):
    def forward(self, {name}):
        _amd_qkv = list(_amd.qkv_proj(self, {name})) if _amd and _amd.on.qkv else None
        q = (_amd_qkv.pop(0) if _amd_qkv else self.q_proj({name}))
        k = (_amd_qkv.pop(0) if _amd_qkv
            else self.k_proj({name})).view(*a_long_shape_of_heads).transpose(1, 2)
        v = (_amd_qkv.pop(0) if _amd_qkv else self.v_proj({name}))
"""
    assert_edit(RECIPE, before, after)


def test_each_branch_is_a_site_of_its_own() -> None:
    lines = ["if self.fast:", *(f"    {line}" for line in LLAMA), "else:", *(f"    {line}" for line in OLMO2)]
    inserted = INSERTED.format("hidden_states")
    indented = "".join(f"    {line}\n" for line in inserted.splitlines())
    after = edited(lines).replace(inserted, "", 1)
    for branch in ("if self.fast:\n", "else:\n"):
        after = after.replace(branch, branch + indented)
    result = assert_edit(RECIPE, method(lines), after)
    assert len(result.outcomes[0].sites) == 2


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([LLAMA[0], LLAMA[1].replace("(hidden_states)", "(key_value_states)"), LLAMA[2]], "take different arguments"),
        ([LLAMA[0], "hidden_states = self.norm(hidden_states)", *LLAMA[1:]], "rebinds hidden_states"),
        ([LLAMA[0], "hidden_states += 1", *LLAMA[1:]], "rebinds hidden_states"),
        ([LLAMA[0], "y = (hidden_states := 1)", *LLAMA[1:]], "rebinds hidden_states"),
        ([LLAMA[0], "hidden_states[0] = 1", *LLAMA[1:]], "rebinds hidden_states"),
        ([LLAMA[0], "if self.x:", "    hidden_states = 1", *LLAMA[1:]], "rebinds hidden_states"),
        ([LLAMA[0], "if self.x:", "    y = 1", *LLAMA[1:]], "is not a plain assignment"),
        ([LLAMA[0], "hidden_states.mul_(2)", *LLAMA[1:]], "is not a plain assignment"),
        ([LLAMA[0], "self = other", *LLAMA[1:]], "changes self"),
        ([LLAMA[0], "old = key_states", *LLAMA[1:]], "reads a name before its projection sets it"),
        ([LLAMA[0], "key_states = 1", *LLAMA[1:]], "binds a name that the projections set"),
        ([LLAMA[0], LLAMA[1] + " + value_states", LLAMA[2]], "reads a name that the projections set"),
        (["query_states = self.q_proj(hidden_states) + query_states", *LLAMA[1:]], "reads a name that the projections"),
        (["hidden_states = self.q_proj(hidden_states)", *LLAMA[1:]], "not four different names"),
        (["query_states = self.q_proj(hidden_states) if x else None", *LLAMA[1:]], "does not always call"),
        (["query_states = x and self.q_proj(hidden_states)", *LLAMA[1:]], "does not always call"),
        (["query_states = [self.q_proj(hidden_states) for _ in x]", *LLAMA[1:]], "does not always call"),
        (["query_states, key_states = self.q_proj(hidden_states).chunk(2)", *LLAMA[1:]], "rebinds a name that another"),
        (["query_states, hidden_states = self.q_proj(hidden_states)", *LLAMA[1:]], "rebinds a name that another"),
        (["query_states = (key_states := self.q_proj(hidden_states))", *LLAMA[1:]], "rebinds a name that another"),
        (["self.q = self.q_proj(hidden_states)", *LLAMA[1:]], "not in an assignment to a name"),
        (["query_states = other = self.q_proj(hidden_states)", *LLAMA[1:]], "not in an assignment to a name"),
        (["self.q_proj(hidden_states)", *LLAMA[1:]], "not in an assignment to a name"),
        ([line.replace("(hidden_states)", "(self.norm(hidden_states))") for line in LLAMA], "expected one plain name"),
        (["query_states, key_states = self.q_proj(hidden_states), self.k_proj(hidden_states)", LLAMA[2]], "not four"),
    ],
)
def test_declined(lines: list[str], reason: str) -> None:
    assert_untouched(RECIPE, method(lines), reason)


@pytest.mark.parametrize(
    "lines",
    [
        LLAMA[:2],
        [LLAMA[0].replace("self.", "other."), *LLAMA[1:]],
        [LLAMA[0].replace("(hidden_states)", "(hidden_states, 1)"), *LLAMA[1:]],
        [*LLAMA, "again = self.k_proj(hidden_states)"],
        [LLAMA[0], "if y:", "    " + LLAMA[1], LLAMA[2]],
    ],
)
def test_no_candidate(lines: list[str]) -> None:
    assert_untouched(RECIPE, method(lines))


def test_a_projection_of_another_kind_is_declined() -> None:
    init = """
    def __init__(self):
        self.q_proj = nn.Linear(1, 1)
        self.k_proj = Conv1D(1, 1)
"""
    text = method(LLAMA).replace("class A(nn.Module):\n", "class A(nn.Module):" + init + "\n")
    assert_untouched(RECIPE, text, "self.k_proj is not built as nn.Linear")


@pytest.mark.parametrize("spelling", SPELLINGS[1:], ids=[one[0] for one in SPELLINGS[1:]])
def test_other_names_are_passed(spelling: tuple[str, ...]) -> None:
    """The encoders' query, key and value (bert, vit, dinov2) and the rest."""
    targets = ("query_layer", "key_layer", "value_layer")
    lines = [f"{target} = self.{name}(hidden_states)" for target, name in zip(targets, spelling, strict=True)]
    result = generate(source(method(lines)), "x.py", one(RECIPE))
    text = body(result).decode()
    names = ", ".join(f'"{name}"' for name in spelling)
    assert f"_amd_qkv = list(_amd.qkv_proj(self, hidden_states, ({names}))) if _amd" in "".join(
        text.replace("(list", "list").replace("\n            if", " if").splitlines()
    )
    for target, name in zip(targets, spelling, strict=True):
        assert f"        {target} = (_amd_qkv.pop(0) if _amd_qkv else self.{name}(hidden_states))\n" in text


def test_two_threes_that_are_interleaved_are_left_alone() -> None:
    """Each would take from the list of the other."""
    pairs = zip(SPELLINGS[0], SPELLINGS[1], strict=True)
    text = [f"t{name} = self.{name}(hidden_states)" for pair in pairs for name in pair]
    assert_untouched(RECIPE, method(text), "is a projection of another three")


def test_two_spellings_in_one_suite_are_two_sites() -> None:
    text = [f"t{name} = self.{name}(hidden_states)" for names in SPELLINGS[:2] for name in names]
    outcome = generate(source(method(text)), "x.py", one(RECIPE)).outcomes[0]
    assert len(outcome.sites) == 2


def test_a_mixture_of_spellings_is_no_candidate() -> None:
    assert_untouched(
        RECIPE,
        method(["a = self.q_proj(hidden_states)", "b = self.key(hidden_states)", "c = self.v_proj(hidden_states)"]),
    )
