"""The rope recipe: rotate-half, full and partial; never an interleaved one."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.rope import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

ROTATE = '''
def rotate_half(x):
    """Rotates half the hidden dims of the input."""
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)
'''
FULL = (
    ROTATE
    + '''

def apply_rotary_pos_emb(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    """Applies it.

    Args: as always.
    """
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed
'''
)
PARTIAL = (
    ROTATE
    + """

def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)

    rotary_dim = cos.shape[-1]
    q_rot, q_pass = q[..., :rotary_dim], q[..., rotary_dim:]
    k_rot, k_pass = k[..., :rotary_dim], k[..., rotary_dim:]

    q_embed = torch.cat([(q_rot * cos) + (rotate_half(q_rot) * sin), q_pass], dim=-1)
    k_embed = torch.cat([(k_rot * cos) + (rotate_half(k_rot) * sin), k_pass], dim=-1)
    return q_embed, k_embed
"""
)
FIRST = "    cos = cos.unsqueeze(unsqueeze_dim)\n"
ASKED = "if _amd and _amd.on.rope and _amd.takes_rope(rotate_half, {}, unsqueeze_dim):"
# The same where one line would be too long.
BROKEN = ASKED.replace("(rotate_half, {}, unsqueeze_dim):", "(\n        rotate_half, {}, unsqueeze_dim\n    ):")
GUARD = f"    {ASKED.format('q, k, cos, sin')}\n        return _amd.apply_rope(q, k, cos, sin, unsqueeze_dim)\n"
DECLINED = "the body is none of the rotate-half forms"


@pytest.mark.parametrize("before", [FULL, PARTIAL])
def test_both_forms(before: str) -> None:
    assert_edit(RECIPE, before, before.replace(FIRST, GUARD + FIRST))


HALVES = """
def _turned(x, cos, sin):
    first_half, second_half = torch.chunk(x, 2, dim=-1)
    first_ = first_half * cos - second_half * sin
    second_ = second_half * cos + first_half * sin
    return torch.cat((first_, second_), dim=-1)


def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = _turned(q, cos, sin)
    k_embed = _turned(k, cos, sin)
    return q_embed, k_embed
"""
HALVES_GUARD = """    if _amd and _amd.on.rope and _amd.takes_rope(_turned, q, k, cos, sin, unsqueeze_dim, halves=True):
        return _amd.apply_rope(q, k, cos, sin, unsqueeze_dim, halves=True)
"""


def test_tables_of_halves() -> None:
    assert_edit(RECIPE, HALVES, HALVES.replace(FIRST, HALVES_GUARD + FIRST))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("second_half * cos + first_half * sin", "second_half * cos - first_half * sin"),
        ("torch.chunk(x, 2, dim=-1)", "x[..., ::2], x[..., 1::2]"),
        ("torch.cat((first_, second_), dim=-1)", "torch.stack((first_, second_), dim=-1).flatten(-2)"),
        ("def _turned(x, cos, sin)", "def _turned(x, sin, cos)"),
    ],
)
def test_halves_that_are_turned_otherwise_are_declined(old: str, new: str) -> None:
    assert old in HALVES
    assert_untouched(RECIPE, HALVES.replace(old, new), "_turned does not rotate the first half against the second")


HEAD = ROTATE + "\n\ndef apply_rotary_pos_emb(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):\n"
UNSQUEEZE = "    cos = cos.unsqueeze(unsqueeze_dim)\n    sin = sin.unsqueeze(unsqueeze_dim)\n"
PRODUCTS = "    q_embed = (q * cos) + (rotate_half(q) * sin)\n    k_embed = (k * cos) + (rotate_half(k) * sin)\n"
SPLIT = """    rotary_dim = cos.shape[-1]
    q_rot, q_pass = q[..., :rotary_dim], q[..., rotary_dim:]
    k_rot, k_pass = k[..., :rotary_dim], k[..., rotary_dim:]
"""
GPT_NEOX = (
    HEAD
    + UNSQUEEZE
    + SPLIT
    + PRODUCTS.replace("(q", "(q_rot").replace("(k", "(k_rot")
    + """    q_embed = torch.cat([q_embed, q_pass], dim=-1)
    k_embed = torch.cat([k_embed, k_pass], dim=-1)
    return q_embed, k_embed
"""
)
NEMOTRON = (
    HEAD
    + UNSQUEEZE
    + SPLIT.replace("q_rot", "q").replace("k_rot", "k")
    + PRODUCTS
    + "    return torch.cat((q_embed, q_pass), dim=-1), torch.cat((k_embed, k_pass), dim=-1)\n"
)
PHIMOE = (
    HEAD
    + UNSQUEEZE.replace("cos.uns", "cos[position_ids].uns").replace("sin.uns", "sin[position_ids].uns")
    + PRODUCTS
    + "    return q_embed, k_embed\n"
)
OLMO = (
    HEAD
    + "    q_type, k_type = q.dtype, k.dtype\n"
    + UNSQUEEZE
    + PRODUCTS
    + "    return q_embed.to(q_type), k_embed.to(k_type)\n"
)
MODERNBERT = (
    HEAD
    + "    original_dtype = q.dtype\n"
    + UNSQUEEZE
    + """    q_embed = (q.float() * cos) + (rotate_half(q.float()) * sin)
    k_embed = (k.float() * cos) + (rotate_half(k.float()) * sin)
    return q_embed.to(original_dtype), k_embed.to(original_dtype)
"""
)


@pytest.mark.parametrize(
    ("before", "arguments", "asked"),
    [
        (GPT_NEOX, "q, k, cos, sin", ASKED),
        (NEMOTRON, "q, k, cos, sin", ASKED),
        (PHIMOE, "q, k, cos[position_ids], sin[position_ids]", BROKEN),
    ],
    ids=["gpt_neox", "nemotron", "phimoe"],
)
def test_other_spellings(before: str, arguments: str, asked: str) -> None:
    guard = f"    {asked.format(arguments)}\n        return _amd.apply_rope({arguments}, unsqueeze_dim)\n"
    assert_edit(RECIPE, before, before.replace(HEAD, HEAD + guard))


@pytest.mark.parametrize(
    ("before", "arguments", "casts"),
    [
        (OLMO, "q, k, cos, sin", ("q.dtype", "k.dtype")),
        (MODERNBERT, "q.float(), k.float(), cos, sin", ("q.dtype", "q.dtype")),
    ],
    ids=["olmo", "modernbert"],
)
def test_forms_that_cast_the_result(before: str, arguments: str, casts: tuple[str, str]) -> None:
    guard = f"""    {ASKED.format(arguments)}
        q_embed, k_embed = _amd.apply_rope({arguments}, unsqueeze_dim)
        return q_embed.to({casts[0]}), k_embed.to({casts[1]})
"""
    assert_edit(RECIPE, before, before.replace(HEAD, HEAD + guard))


@pytest.mark.parametrize(
    "text",
    [
        GPT_NEOX.replace("[k_embed, k_pass]", "[k_pass, k_embed]"),
        NEMOTRON.replace("(k_embed, k_pass)", "(k_embed, q_pass)"),
        PHIMOE.replace("sin[position_ids]", "sin[position_ids + 1]"),
        OLMO.replace("k_embed.to(k_type)", "k_embed.to(q_type)"),
        MODERNBERT.replace("rotate_half(k.float())", "rotate_half(k)"),
        OLMO.replace("rotate_half(q)", "rotate_half(k)"),
    ],
)
def test_their_neighbours_are_declined(text: str) -> None:
    assert_untouched(RECIPE, text, DECLINED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(rotate_half(k) * sin)", "(rotate_half(k) * cos)"),
        ("(q * cos) +", "(q * cos) -"),
        ("    q_embed =", "    q = q.float()\n    q_embed ="),
        ("sin = sin.unsqueeze(unsqueeze_dim)", "sin = sin.unsqueeze(1)"),
        ("return q_embed, k_embed", "return k_embed, q_embed"),
        ("(q * cos) + (rotate_half(q) * sin)", "q * (cos + rotate_half(q)) * sin"),
    ],
)
def test_another_formula_is_declined(old: str, new: str) -> None:
    assert old in FULL
    assert_untouched(RECIPE, FULL.replace(old, new), DECLINED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x[..., : x.shape[-1] // 2]", "x[..., ::2]"),
        ("(-x2, x1)", "(x1, -x2)"),
        ("def rotate_half(x):", "def rotate_half(x, interleaved=True):"),
        ("def rotate_half(x):", "def rotate_half(y):"),
        ("torch.cat((-x2, x1), dim=-1)", "torch.stack((-x2, x1), dim=-1).flatten(-2)"),
    ],
)
def test_a_rotate_half_that_interleaves_is_declined(old: str, new: str) -> None:
    assert_untouched(RECIPE, FULL.replace(old, new), "rotate_half does not rotate the first half against the second")


def test_an_imported_rotate_half_is_declined() -> None:
    imported = "from somewhere import rotate_half\n" + FULL.replace(ROTATE, "")
    assert_untouched(RECIPE, imported, "rotate_half is not defined exactly once in this file")


def test_a_dimension_that_is_no_parameter_is_declined() -> None:
    assert_untouched(RECIPE, FULL.replace(", unsqueeze_dim=1", ""), "are not 5 parameters of the function")


def test_a_method_of_that_name_is_no_candidate() -> None:
    method = (
        ROTATE
        + "\n\nclass A:\n"
        + "\n".join("    " + line if line else "" for line in FULL.replace(ROTATE, "").strip().splitlines())
    )
    assert_untouched(RECIPE, method)


def test_a_call_with_tables_of_another_rank_is_declined() -> None:
    call = "\n\ndef attend(q, k, cos, sin):\n    return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim={})\n"
    assert_untouched(RECIPE, FULL + call.format(0), "calls it with unsqueeze_dim=0")
    assert_edit(RECIPE, FULL + call.format(2), (FULL + call.format(2)).replace(FIRST, GUARD + FIRST))
