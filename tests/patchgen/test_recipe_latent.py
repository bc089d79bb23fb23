"""The latent recipe: rotation and joining of q and k by one call, stock's statements where it gives none."""

from __future__ import annotations

import pytest
from rocm_overlay.overlays.recipes.latent import RECIPE

from tests.patchgen.support import assert_edit, assert_untouched

FUNCTIONS = """
def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def halves(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed


def pairs(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)

    b, h, s, d = q.shape
    q = q.view(b, h, s, d // 2, 2).transpose(4, 3).reshape(b, h, s, d)

    b, h, s, d = k.shape
    k = k.view(b, h, s, d // 2, 2).transpose(4, 3).reshape(b, h, s, d)

    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed


"""
STOCK = """class Attention(nn.Module):
    def forward(self, q_pass, q_rot, k_pass, k_rot, position_embeddings):
        cos, sin = position_embeddings
        if self.config.rope_interleave:  # support using interleaved weights
            q_rot, k_rot = pairs(q_rot, k_rot, cos, sin)
        else:
            q_rot, k_rot = halves(q_rot, k_rot, cos, sin)
        k_rot = k_rot.expand(*k_pass.shape[:-1], -1)

        query = torch.cat((q_pass, q_rot), dim=-1)
        key = torch.cat((k_pass, k_rot), dim=-1)
        return query, key
"""
OURS = """class Attention(nn.Module):
    def forward(self, q_pass, q_rot, k_pass, k_rot, position_embeddings):
        cos, sin = position_embeddings
        _amd_latent = None
        if _amd and _amd.on.rope:
            _amd_latent = _amd.latent_rope(
                q_pass, q_rot, k_pass, k_rot, cos, sin,
                self.config.rope_interleave, halves, pairs,
            )
        if _amd_latent is not None:
            query, key = _amd_latent
        elif self.config.rope_interleave:  # support using interleaved weights
            q_rot, k_rot = pairs(q_rot, k_rot, cos, sin)
        else:
            q_rot, k_rot = halves(q_rot, k_rot, cos, sin)
        k_rot = k_rot.expand(*k_pass.shape[:-1], -1)

        query = torch.cat((q_pass, q_rot), dim=-1) if _amd_latent is None else query
        key = torch.cat((k_pass, k_rot), dim=-1) if _amd_latent is None else key
        return query, key
"""


def test_rotation_and_joining() -> None:
    assert_edit(RECIPE, FUNCTIONS + STOCK, FUNCTIONS + OURS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("k_rot.expand(*k_pass.shape[:-1], -1)", "k_rot.expand(*q_pass.shape[:-1], -1)"),
        ("torch.cat((q_pass, q_rot), dim=-1)", "torch.cat((q_rot, q_pass), dim=-1)"),
        ("halves(q_rot, k_rot, cos, sin)", "halves(q_rot, k_rot, sin, cos)"),
    ],
)
def test_other_statements_are_no_candidate(old: str, new: str) -> None:
    assert STOCK.count(old) == 1
    assert_untouched(RECIPE, FUNCTIONS + STOCK.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("transpose(4, 3)", "transpose(3, 4).contiguous()", "pairs is not a rotation that we know"),
        ("unsqueeze_dim=1", "unsqueeze_dim=2", "is not a rotation that we know"),
        ("return torch.cat((-x2, x1), dim=-1)", "return torch.cat((x2, x1), dim=-1)", "is not a rotation that we know"),
        ("return query, key", "return query, key, k_rot", "k_rot is used later"),
    ],
)
def test_what_is_declined_and_why(old: str, new: str, reason: str) -> None:
    text = FUNCTIONS + STOCK
    assert old in text
    assert_untouched(RECIPE, text.replace(old, new), reason)
