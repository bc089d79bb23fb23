"""The qk_rope recipe: head norms, rotation and update stand in one plan, or stay stock's."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.qk_norm_rope import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

ROPE = """
def rotate_half(x):
    a = x[..., : x.shape[-1] // 2]
    b = x[..., x.shape[-1] // 2 :]
    return torch.cat((-b, a), dim=-1)


def apply_rotary_pos_emb(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed

"""
QWEN = (
    ROPE
    + """
class Attention(nn.Module):
    def forward(self, x, tables, past_key_values=None, cache_position=None):
        shape = (*x.shape[:-1], -1, 8)
        q = self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        cos, sin = tables
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        if past_key_values is not None:
            extra = {"sin": sin, "cos": cos, "cache_position": cache_position}
            k, v = past_key_values.update(k, v, self.layer_idx, extra)
        return q, k, v
"""
)
QWEN_Q = "q = self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2)"
OLMO_Q = "q = self.q_norm(self.q_proj(x))\n        q = q.view(shape).transpose(1, 2)"
PLAN = """        _amd_qk = (_amd.qk_rope(self{}, rotate=apply_rotary_pos_emb)
            if _amd and _amd.on.qk_rope else None)
"""
ROTATION = """        q, k = (_amd_qk(q, k, {}, cos, sin) if _amd_qk
            else apply_rotary_pos_emb(q, k, cos, sin))
"""
CACHE = ", past_key_values, cache_position"


def after(text: str, arguments: str, *, norms: bool, cache: bool = True) -> str:
    first = "        shape ="
    found = text.replace(first, PLAN.format(arguments) + first)
    stock = "        q, k = apply_rotary_pos_emb(q, k, cos, sin)\n"
    found = found.replace(stock, ROTATION.format("v" if cache else "None"))
    if norms:
        for name in ("q_norm", "k_norm"):
            found = found.replace(f"self.{name}", f"(_amd_qk or self).{name}")
    return found.replace("past_key_values.update", "(_amd_qk or past_key_values).update") if cache else found


def test_norms_around_the_view() -> None:
    assert_edit(RECIPE, QWEN, after(QWEN, f"{CACHE}, norms=True", norms=True))


def test_norms_as_statements_of_their_own() -> None:
    gemma = QWEN.replace("self.q_norm(self.q_proj(x).view(shape))", "self.q_proj(x).view(shape)")
    gemma = gemma.replace("self.k_norm(self.k_proj(x).view(shape))", "self.k_proj(x).view(shape)")
    norms = "        q = self.q_norm(q)\n        k = self.k_norm(k)\n"
    gemma = gemma.replace("        cos, sin =", f"{norms}        cos, sin =")
    assert_edit(RECIPE, gemma, after(gemma, f"{CACHE}, norms=True", norms=True))


def test_no_norms_but_a_cache() -> None:
    llama = QWEN.replace("self.q_norm", "").replace("self.k_norm", "")
    assert_edit(RECIPE, llama, after(llama, CACHE, norms=False))
    newer = llama.replace(", cache_position=None", "").replace(', "cache_position": cache_position', "")
    assert_edit(RECIPE, newer, after(newer, ", past_key_values", norms=False))


@pytest.mark.parametrize(
    ("cache", "position"), [("cache", "where"), ("layer_past", "position_ids"), ("past_key_value", "cache_position")]
)
def test_the_cache_is_what_is_updated_whatever_its_name(cache: str, position: str) -> None:
    def named(text: str) -> str:
        text = text.replace("past_key_values", cache)
        return text.replace("cache_position", position).replace(f'"{position}"', '"cache_position"')

    assert_edit(RECIPE, named(QWEN), named(after(QWEN, f"{CACHE}, norms=True", norms=True)))


def test_positions_that_the_cache_is_not_told_are_not_passed() -> None:
    before = QWEN.replace(', "cache_position": cache_position', "")
    assert_edit(RECIPE, before, after(before, ", past_key_values, norms=True", norms=True))
    plain = QWEN.replace("self.layer_idx, extra", "self.layer_idx, **extra")
    assert_edit(RECIPE, plain, after(plain, f"{CACHE}, norms=True", norms=True))


def test_norms_but_no_cache() -> None:
    before = QWEN.split("        if past_key_values")[0] + "        return q, k, v\n"
    assert_edit(RECIPE, before, after(before, ", norms=True", norms=True, cache=False))


def test_a_line_that_grows_too_long_is_broken() -> None:
    before = QWEN.replace("extra", "the_arguments_that_only_some_of_the_caches_care_for_and_the_others_ignore")
    wanted = after(before, f"{CACHE}, norms=True", norms=True)
    broken = "(\n                _amd_qk or past_key_values\n            ).update"
    assert_edit(RECIPE, before, wanted.replace("(_amd_qk or past_key_values).update", broken))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # olmo2: the norm spans all heads, the view comes behind it
        (QWEN_Q, OLMO_Q),
        ("        cos, sin =", "        q = q * self.scale\n        cos, sin ="),
        ("        cos, sin =", "        self.seen = k\n        cos, sin ="),
        (".transpose(1, 2)\n        k =", ".transpose(1, 3)\n        k ="),
    ],
)
def test_something_between_norm_and_rotation_keeps_the_norms_stock(old: str, new: str) -> None:
    before = QWEN.replace(old, new, 1)
    assert before != QWEN
    assert_edit(RECIPE, before, after(before, CACHE, norms=False))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # hunyuan: a norm behind the rotation
        ("        if past", "        k = self.other(k)\n        if past"),
        ("            k, v = past", "            v = v * 2\n            k, v = past"),
        ("self.layer_idx, extra", "0, extra"),
        ("past_key_values.update(k, v", "past_key_values.update(v, k"),
        ("past_key_values.update", "self.cache.update"),
        ("        cos, sin =", "        past_key_values = other(past_key_values)\n        cos, sin ="),
    ],
)
def test_something_at_the_update_keeps_it_stock(old: str, new: str) -> None:
    before = QWEN.replace(old, new, 1)
    assert before != QWEN
    assert_edit(RECIPE, before, after(before, ", norms=True", norms=True, cache=False))


def test_a_rotation_under_a_condition_leaves_the_norms_to_stock() -> None:
    before = QWEN.replace("        q, k = apply", "        if self.use_rope:\n            q, k = apply")
    nested = "".join(f"    {line}\n" for line in ROTATION.format("v").splitlines())
    wanted = after(QWEN, CACHE, norms=False)
    assert_edit(RECIPE, before, wanted.replace(ROTATION.format("v"), f"        if self.use_rope:\n{nested}"))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("b = x[..., x.shape[-1] // 2 :]", "b = x[..., 1::2]", "does not rotate the first half"),
        ("(q * cos) +", "(q * cos) -", "none of the rotate-half forms"),
        ("        shape = (*x.shape[:-1], -1, 8)\n", "", "begins with a projection"),
    ],
)
def test_declined_with_a_reason(old: str, new: str, reason: str) -> None:
    assert_untouched(RECIPE, QWEN.replace(old, new), reason)


@pytest.mark.parametrize("call", ["apply_rotary_pos_emb(q, k, cos, sin, 2)", "apply_rotary_pos_emb(k, q, cos, sin)"])
def test_another_call_is_no_candidate(call: str) -> None:
    assert_untouched(RECIPE, QWEN.replace("apply_rotary_pos_emb(q, k, cos, sin)\n        if", f"{call}\n        if"))


TURNED = """    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed
"""
PARTIAL = """    width = cos.shape[-1]
    q_rot, q_pass = q[..., :width], q[..., width:]
    k_rot, k_pass = k[..., :width], k[..., width:]
    q_embed = (q_rot * cos) + (rotate_half(q_rot) * sin)
    k_embed = (k_rot * cos) + (rotate_half(k_rot) * sin)
    q_embed = torch.cat([q_embed, q_pass], dim=-1)
    k_embed = torch.cat([k_embed, k_pass], dim=-1)
    return q_embed, k_embed
"""
OF_HALVES = """    q_embed = turn(q, cos, sin)
    k_embed = turn(k, cos, sin)
    return q_embed, k_embed


def turn(x, cos, sin):
    a, b = torch.chunk(x, 2, dim=-1)
    first = a * cos - b * sin
    second = b * cos + a * sin
    return torch.cat((first, second), dim=-1)
"""


def test_a_rotation_of_the_beginning_of_each_head() -> None:
    glm = QWEN.replace(TURNED, PARTIAL)
    assert_edit(RECIPE, glm, after(glm, f"{CACHE}, norms=True", norms=True))


def test_tables_of_halves_are_said_to_be_such() -> None:
    oss = QWEN.replace(TURNED, OF_HALVES).replace("self.q_norm", "").replace("self.k_norm", "")
    want = after(oss, CACHE, norms=False)
    assert_edit(RECIPE, oss, want.replace("rotate=apply_rotary_pos_emb)", "rotate=apply_rotary_pos_emb, halves=True)"))


def test_results_that_are_cast_are_declined() -> None:
    olmo = QWEN.replace(TURNED, TURNED.replace("return q_embed, k_embed", "return q_embed.to(a), k_embed.to(b)"))
    olmo = olmo.replace("    cos = cos.unsqueeze", "    a, b = q.dtype, k.dtype\n    cos = cos.unsqueeze")
    assert_untouched(RECIPE, olmo, "return what they turn as it is")
