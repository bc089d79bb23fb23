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


SLICED = """
def sliced(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    cos = cos[..., : cos.shape[-1] // 2].unsqueeze(unsqueeze_dim)
    sin = sin[..., : sin.shape[-1] // 2].unsqueeze(unsqueeze_dim)

    q1, q2 = q[..., 0::2], q[..., 1::2]
    k1, k2 = k[..., 0::2], k[..., 1::2]

    q_embed = torch.cat([q1 * cos - q2 * sin, q2 * cos + q1 * sin], dim=-1)
    k_embed = torch.cat([k1 * cos - k2 * sin, k2 * cos + k1 * sin], dim=-1)
    return q_embed, k_embed


class Tables(nn.Module):
    def forward(self, freqs):
        emb = torch.cat((freqs, freqs), dim=-1)
        return emb.cos(), emb.sin()


"""
CACHED = """class Attention(nn.Module):
    def forward(self, q_pass, q_rot, latent, k_rot, position_embeddings, cache=None, **kwargs):
        cos, sin = position_embeddings
        if self.config.rope_interleave:  # support using interleaved weights
            q_rot, k_rot = sliced(q_rot, k_rot, cos, sin)
        else:
            q_rot, k_rot = halves(q_rot, k_rot, cos, sin)

        # Cache read / write is performed while latent KV is still compressed
        if cache is not None:
            latent, k_rot = cache.update(latent, k_rot, self.layer_idx, kwargs=kwargs)

        query = torch.cat((q_pass, q_rot), dim=-1)
        key, value = self.expand(latent, k_rot)
        return query, key, value

    def expand(self, latent, k_rot):
        return latent, k_rot.expand(-1, latent.shape[1], -1, -1)
"""
OURS_CACHED = """class Attention(nn.Module):
    def forward(self, q_pass, q_rot, latent, k_rot, position_embeddings, cache=None, **kwargs):
        cos, sin = position_embeddings
        _amd_latent = None
        if _amd and _amd.on.rope:
            _amd_latent = _amd.latent_rope(
                q_pass, q_rot, None, k_rot, cos, sin,
                self.config.rope_interleave, halves, sliced,
            )
        if _amd_latent is not None:
            query, k_rot = _amd_latent
        elif self.config.rope_interleave:  # support using interleaved weights
            q_rot, k_rot = sliced(q_rot, k_rot, cos, sin)
        else:
            q_rot, k_rot = halves(q_rot, k_rot, cos, sin)

        # Cache read / write is performed while latent KV is still compressed
        if cache is not None:
            latent, k_rot = cache.update(latent, k_rot, self.layer_idx, kwargs=kwargs)

        query = torch.cat((q_pass, q_rot), dim=-1) if _amd_latent is None else query
        key, value = self.expand(latent, k_rot)
        return query, key, value

    def expand(self, latent, k_rot):
        return latent, k_rot.expand(-1, latent.shape[1], -1, -1)
"""
WHOLE = FUNCTIONS + SLICED + CACHED


@pytest.mark.parametrize("words", [", kwargs=kwargs", ""])
def test_a_cache_that_takes_latents(words: str) -> None:
    after = FUNCTIONS + SLICED + OURS_CACHED
    assert_edit(RECIPE, WHOLE.replace(", kwargs=kwargs", words), after.replace(", kwargs=kwargs", words))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cache.update(latent, k_rot, self.layer_idx", "cache.update(k_rot, latent, self.layer_idx"),
        ("if cache is not None", "if cache"),
        ("(q_pass, q_rot), dim=-1", "(q_pass, k_rot), dim=-1"),
    ],
)
def test_another_use_of_the_cache_is_no_candidate(old: str, new: str) -> None:
    assert CACHED.count(old) == 1
    assert_untouched(RECIPE, WHOLE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("q2 * cos + q1 * sin", "q2 * cos - q1 * sin", "sliced is not a rotation that we know"),
        ("k[..., 1::2]", "k[..., 0::2]", "sliced is not a rotation that we know"),
        # Half of the tables is used: which is all of them only where both halves are one.
        ("emb = torch.cat((freqs, freqs), dim=-1)", "emb = freqs", "sliced is not a rotation that we know"),
        ("return query, key, value", "return query, key, value, q_rot", "q_rot is used later"),
    ],
)
def test_what_is_declined_of_a_latent_cache_and_why(old: str, new: str, reason: str) -> None:
    assert old in WHOLE
    assert_untouched(RECIPE, WHOLE.replace(old, new), reason)


EXPANDED = """
class Attention(nn.Module):
    def expand(self, latent, k_rot):
        batch_size, _, seq_length, _ = latent.shape
        both = self.up(latent).view(batch_size, seq_length, -1, self.still + self.values).transpose(1, 2)
        k_pass, value = torch.split(both, [self.still, self.values], dim=-1)
        k_rot = k_rot.expand(-1, k_pass.shape[1], -1, -1)  # does not affect the underlying storage

        # Concatenate them in a new tensor
        key = both.new_empty(*both.shape[:-1], self.still + self.turned)
        key[..., : self.still].copy_(k_pass)
        key[..., self.still :].copy_(k_rot)
        return key, value
"""
KEY = """        if _amd and _amd.on.rope:
            _amd_latent = _amd.latent_key(k_pass, k_rot, self.turned)
            if _amd_latent is not None:
                return _amd_latent, value
"""


def test_the_key_behind_the_cache() -> None:
    first = "        k_rot = k_rot.expand("
    assert_edit(RECIPE, EXPANDED, EXPANDED.replace(first, KEY + first))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("key[..., : self.still].copy_(k_pass)", "key[..., : self.turned].copy_(k_pass)"),
        ("key[..., self.still :].copy_(k_rot)", "key[..., self.still :].add_(k_rot)"),
        ("both.new_empty(", "both.new_zeros("),
        ("self.still + self.turned)", "self.turned + self.still)"),
        ("return key, value", "return value, key"),
    ],
)
def test_another_join_is_no_candidate(old: str, new: str) -> None:
    assert EXPANDED.count(old) == 1
    assert_untouched(RECIPE, EXPANDED.replace(old, new))
